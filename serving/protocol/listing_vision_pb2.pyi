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

class FormTreatment(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORM_TREATMENT_UNSPECIFIED: _ClassVar[FormTreatment]
    FORM_TREATMENT_FILLED: _ClassVar[FormTreatment]
    FORM_TREATMENT_SUGGESTED: _ClassVar[FormTreatment]
    FORM_TREATMENT_HIDDEN: _ClassVar[FormTreatment]

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
    PHOTO_ERROR_REASON_NOT_FETCHED: _ClassVar[PhotoErrorReason]
SUGGESTION_OUTCOME_UNSPECIFIED: SuggestionOutcome
SUGGESTION_OUTCOME_FILL: SuggestionOutcome
SUGGESTION_OUTCOME_SUGGEST: SuggestionOutcome
FORM_TREATMENT_UNSPECIFIED: FormTreatment
FORM_TREATMENT_FILLED: FormTreatment
FORM_TREATMENT_SUGGESTED: FormTreatment
FORM_TREATMENT_HIDDEN: FormTreatment
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
PHOTO_ERROR_REASON_NOT_FETCHED: PhotoErrorReason

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
    __slots__ = ("content", "uri")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    uri: str
    def __init__(self, content: _Optional[bytes] = ..., uri: _Optional[str] = ...) -> None: ...

class ClassifyListingResponse(_message.Message):
    __slots__ = ("listing_id", "category_path", "brand", "alternatives", "photos", "model", "stage_times")
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_PATH_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMES_FIELD_NUMBER: _ClassVar[int]
    listing_id: str
    category_path: _containers.RepeatedCompositeFieldContainer[CategorySuggestion]
    brand: BrandSuggestion
    alternatives: _containers.RepeatedCompositeFieldContainer[CategoryAlternative]
    photos: _containers.RepeatedCompositeFieldContainer[PhotoResult]
    model: ModelVersion
    stage_times: _containers.RepeatedCompositeFieldContainer[StageTime]
    def __init__(self, listing_id: _Optional[str] = ..., category_path: _Optional[_Iterable[_Union[CategorySuggestion, _Mapping]]] = ..., brand: _Optional[_Union[BrandSuggestion, _Mapping]] = ..., alternatives: _Optional[_Iterable[_Union[CategoryAlternative, _Mapping]]] = ..., photos: _Optional[_Iterable[_Union[PhotoResult, _Mapping]]] = ..., model: _Optional[_Union[ModelVersion, _Mapping]] = ..., stage_times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "duration_ms")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    duration_ms: float
    def __init__(self, stage: _Optional[str] = ..., duration_ms: _Optional[float] = ...) -> None: ...

class ClassifyListingsRequest(_message.Message):
    __slots__ = ("sequence", "listing")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    listing: ClassifyListingRequest
    def __init__(self, sequence: _Optional[int] = ..., listing: _Optional[_Union[ClassifyListingRequest, _Mapping]] = ...) -> None: ...

class ClassifyListingsResponse(_message.Message):
    __slots__ = ("sequence", "listing", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    listing: ClassifyListingResponse
    error: ListingError
    def __init__(self, sequence: _Optional[int] = ..., listing: _Optional[_Union[ClassifyListingResponse, _Mapping]] = ..., error: _Optional[_Union[ListingError, _Mapping]] = ...) -> None: ...

class ListingError(_message.Message):
    __slots__ = ("code", "message", "reason", "retry_delay_ms", "violations")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    retry_delay_ms: int
    violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., retry_delay_ms: _Optional[int] = ..., violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class ExplainPhotoRequest(_message.Message):
    __slots__ = ("photo",)
    PHOTO_FIELD_NUMBER: _ClassVar[int]
    photo: Photo
    def __init__(self, photo: _Optional[_Union[Photo, _Mapping]] = ...) -> None: ...

class ExplainPhotoResponse(_message.Message):
    __slots__ = ("category_id", "category_probability", "row_count", "column_count", "importances", "seen")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    COLUMN_COUNT_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCES_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    category_probability: float
    row_count: int
    column_count: int
    importances: _containers.RepeatedScalarFieldContainer[float]
    seen: bytes
    def __init__(self, category_id: _Optional[str] = ..., category_probability: _Optional[float] = ..., row_count: _Optional[int] = ..., column_count: _Optional[int] = ..., importances: _Optional[_Iterable[float]] = ..., seen: _Optional[bytes] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("listing_id", "category_id", "brand", "category_treatment", "brand_treatment")
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_TREATMENT_FIELD_NUMBER: _ClassVar[int]
    BRAND_TREATMENT_FIELD_NUMBER: _ClassVar[int]
    listing_id: str
    category_id: str
    brand: BrandChoice
    category_treatment: FormTreatment
    brand_treatment: FormTreatment
    def __init__(self, listing_id: _Optional[str] = ..., category_id: _Optional[str] = ..., brand: _Optional[_Union[BrandChoice, _Mapping]] = ..., category_treatment: _Optional[_Union[FormTreatment, str]] = ..., brand_treatment: _Optional[_Union[FormTreatment, str]] = ...) -> None: ...

class BrandChoice(_message.Message):
    __slots__ = ("brand_id", "no_brand", "other_name")
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    NO_BRAND_FIELD_NUMBER: _ClassVar[int]
    OTHER_NAME_FIELD_NUMBER: _ClassVar[int]
    brand_id: str
    no_brand: bool
    other_name: str
    def __init__(self, brand_id: _Optional[str] = ..., no_brand: _Optional[bool] = ..., other_name: _Optional[str] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

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
