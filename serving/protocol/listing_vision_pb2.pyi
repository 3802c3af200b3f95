from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SuggestionOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUGGESTION_OUTCOME_UNSPECIFIED: _ClassVar[SuggestionOutcome]
    SUGGESTION_OUTCOME_FILL: _ClassVar[SuggestionOutcome]
    SUGGESTION_OUTCOME_SUGGEST: _ClassVar[SuggestionOutcome]

class BrandKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BRAND_KIND_UNSPECIFIED: _ClassVar[BrandKind]
    BRAND_KIND_BRAND: _ClassVar[BrandKind]
    BRAND_KIND_NO_BRAND: _ClassVar[BrandKind]
    BRAND_KIND_UNKNOWN: _ClassVar[BrandKind]

class PhotoErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHOTO_ERROR_REASON_UNSPECIFIED: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_EMPTY: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_TOO_MANY_BYTES: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_TOO_MANY_PIXELS: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_TOO_SMALL: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_NOT_AN_IMAGE: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_TRUNCATED: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_UNREADABLE: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_DECODER_CRASHED: _ClassVar[PhotoErrorReason]
    PHOTO_ERROR_REASON_TIMEOUT: _ClassVar[PhotoErrorReason]
SUGGESTION_OUTCOME_UNSPECIFIED: SuggestionOutcome
SUGGESTION_OUTCOME_FILL: SuggestionOutcome
SUGGESTION_OUTCOME_SUGGEST: SuggestionOutcome
BRAND_KIND_UNSPECIFIED: BrandKind
BRAND_KIND_BRAND: BrandKind
BRAND_KIND_NO_BRAND: BrandKind
BRAND_KIND_UNKNOWN: BrandKind
PHOTO_ERROR_REASON_UNSPECIFIED: PhotoErrorReason
PHOTO_ERROR_REASON_EMPTY: PhotoErrorReason
PHOTO_ERROR_REASON_TOO_MANY_BYTES: PhotoErrorReason
PHOTO_ERROR_REASON_TOO_MANY_PIXELS: PhotoErrorReason
PHOTO_ERROR_REASON_TOO_SMALL: PhotoErrorReason
PHOTO_ERROR_REASON_NOT_AN_IMAGE: PhotoErrorReason
PHOTO_ERROR_REASON_TRUNCATED: PhotoErrorReason
PHOTO_ERROR_REASON_UNREADABLE: PhotoErrorReason
PHOTO_ERROR_REASON_DECODER_CRASHED: PhotoErrorReason
PHOTO_ERROR_REASON_TIMEOUT: PhotoErrorReason

class ClassifyListingRequest(_message.Message):
    __slots__ = ("listing_id", "photos", "alternative_count")
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_COUNT_FIELD_NUMBER: _ClassVar[int]
    listing_id: str
    photos: _containers.RepeatedCompositeFieldContainer[Photo]
    alternative_count: int
    def __init__(self, listing_id: _Optional[str] = ..., photos: _Optional[_Iterable[_Union[Photo, _Mapping]]] = ..., alternative_count: _Optional[int] = ...) -> None: ...

class Photo(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class ClassifyListingResponse(_message.Message):
    __slots__ = ("listing_id", "category_path", "brand", "alternatives", "photos", "model")
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_PATH_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    listing_id: str
    category_path: _containers.RepeatedCompositeFieldContainer[CategorySuggestion]
    brand: BrandSuggestion
    alternatives: _containers.RepeatedCompositeFieldContainer[CategoryAlternative]
    photos: _containers.RepeatedCompositeFieldContainer[PhotoResult]
    model: ModelVersion
    def __init__(self, listing_id: _Optional[str] = ..., category_path: _Optional[_Iterable[_Union[CategorySuggestion, _Mapping]]] = ..., brand: _Optional[_Union[BrandSuggestion, _Mapping]] = ..., alternatives: _Optional[_Iterable[_Union[CategoryAlternative, _Mapping]]] = ..., photos: _Optional[_Iterable[_Union[PhotoResult, _Mapping]]] = ..., model: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class CategorySuggestion(_message.Message):
    __slots__ = ("category_id", "name", "probability", "outcome", "explanation")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    name: str
    probability: float
    outcome: SuggestionOutcome
    explanation: str
    def __init__(self, category_id: _Optional[str] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ..., outcome: _Optional[_Union[SuggestionOutcome, str]] = ..., explanation: _Optional[str] = ...) -> None: ...

class BrandSuggestion(_message.Message):
    __slots__ = ("kind", "brand_id", "name", "probability", "outcome", "explanation")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    kind: BrandKind
    brand_id: str
    name: str
    probability: float
    outcome: SuggestionOutcome
    explanation: str
    def __init__(self, kind: _Optional[_Union[BrandKind, str]] = ..., brand_id: _Optional[str] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ..., outcome: _Optional[_Union[SuggestionOutcome, str]] = ..., explanation: _Optional[str] = ...) -> None: ...

class CategoryAlternative(_message.Message):
    __slots__ = ("category_id", "path", "probability")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    path: str
    probability: float
    def __init__(self, category_id: _Optional[str] = ..., path: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class PhotoResult(_message.Message):
    __slots__ = ("recognition", "error")
    RECOGNITION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    recognition: PhotoRecognition
    error: PhotoError
    def __init__(self, recognition: _Optional[_Union[PhotoRecognition, _Mapping]] = ..., error: _Optional[_Union[PhotoError, _Mapping]] = ...) -> None: ...

class PhotoRecognition(_message.Message):
    __slots__ = ("category_id", "category_probability", "brand_id", "brand_probability", "brand_kind")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    BRAND_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    BRAND_KIND_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    category_probability: float
    brand_id: str
    brand_probability: float
    brand_kind: BrandKind
    def __init__(self, category_id: _Optional[str] = ..., category_probability: _Optional[float] = ..., brand_id: _Optional[str] = ..., brand_probability: _Optional[float] = ..., brand_kind: _Optional[_Union[BrandKind, str]] = ...) -> None: ...

class PhotoError(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: PhotoErrorReason
    message: str
    def __init__(self, reason: _Optional[_Union[PhotoErrorReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("name", "version", "taxonomy_version", "calibration_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TAXONOMY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    taxonomy_version: str
    calibration_version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., taxonomy_version: _Optional[str] = ..., calibration_version: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "category_count", "brand_count", "photo_count_limit", "photo_bytes_limit", "photo_pixels_limit", "promises")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_COUNT_FIELD_NUMBER: _ClassVar[int]
    BRAND_COUNT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_COUNT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_PIXELS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PROMISES_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    category_count: int
    brand_count: int
    photo_count_limit: int
    photo_bytes_limit: int
    photo_pixels_limit: int
    promises: _containers.RepeatedCompositeFieldContainer[FieldPromise]
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., category_count: _Optional[int] = ..., brand_count: _Optional[int] = ..., photo_count_limit: _Optional[int] = ..., photo_bytes_limit: _Optional[int] = ..., photo_pixels_limit: _Optional[int] = ..., promises: _Optional[_Iterable[_Union[FieldPromise, _Mapping]]] = ...) -> None: ...

class FieldPromise(_message.Message):
    __slots__ = ("field", "precision", "failure_probability", "threshold", "explanation", "coverage", "precision_bound")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_BOUND_FIELD_NUMBER: _ClassVar[int]
    field: str
    precision: float
    failure_probability: float
    threshold: float
    explanation: str
    coverage: float
    precision_bound: float
    def __init__(self, field: _Optional[str] = ..., precision: _Optional[float] = ..., failure_probability: _Optional[float] = ..., threshold: _Optional[float] = ..., explanation: _Optional[str] = ..., coverage: _Optional[float] = ..., precision_bound: _Optional[float] = ...) -> None: ...
