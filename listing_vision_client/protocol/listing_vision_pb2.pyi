import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from listing_vision_client.protocol import reasons_pb2 as _reasons_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_PREFILL: _ClassVar[Action]
    ACTION_SUGGEST: _ClassVar[Action]

class NotPrefilledReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOT_PREFILLED_REASON_UNSPECIFIED: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_BELOW_THRESHOLD: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_NOT_CERTIFIED: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_CERTIFICATE_VOID: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_RELEASE_UNHEALTHY: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_NOT_CALIBRATED: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_CATCH_ALL_CATEGORY: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_PARENT_NOT_PREFILLED: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_ONLY_CATEGORY: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_OTHER_BRAND: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_OUT_OF_SCOPE: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_PHOTOS_DISAGREE: _ClassVar[NotPrefilledReason]
    NOT_PREFILLED_REASON_ANCESTOR_GIVEN: _ClassVar[NotPrefilledReason]

class BrandKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BRAND_KIND_UNSPECIFIED: _ClassVar[BrandKind]
    BRAND_KIND_BRAND: _ClassVar[BrandKind]
    BRAND_KIND_NO_BRAND: _ClassVar[BrandKind]
    BRAND_KIND_OTHER: _ClassVar[BrandKind]
    BRAND_KIND_UNDETERMINED: _ClassVar[BrandKind]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_FETCH: _ClassVar[Stage]
    STAGE_QUEUE: _ClassVar[Stage]
    STAGE_DECODE: _ClassVar[Stage]
    STAGE_MODEL: _ClassVar[Stage]
    STAGE_DECISION: _ClassVar[Stage]

class ExplanationTarget(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPLANATION_TARGET_UNSPECIFIED: _ClassVar[ExplanationTarget]
    EXPLANATION_TARGET_CATEGORY: _ClassVar[ExplanationTarget]
    EXPLANATION_TARGET_BRAND: _ClassVar[ExplanationTarget]

class FormField(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORM_FIELD_UNSPECIFIED: _ClassVar[FormField]
    FORM_FIELD_CATEGORY: _ClassVar[FormField]
    FORM_FIELD_BRAND: _ClassVar[FormField]

class FormTreatment(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORM_TREATMENT_UNSPECIFIED: _ClassVar[FormTreatment]
    FORM_TREATMENT_PREFILLED: _ClassVar[FormTreatment]
    FORM_TREATMENT_SUGGESTED: _ClassVar[FormTreatment]
    FORM_TREATMENT_HIDDEN: _ClassVar[FormTreatment]

class SuggestionIdStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUGGESTION_ID_STATUS_UNSPECIFIED: _ClassVar[SuggestionIdStatus]
    SUGGESTION_ID_STATUS_VALID: _ClassVar[SuggestionIdStatus]
    SUGGESTION_ID_STATUS_MISSING: _ClassVar[SuggestionIdStatus]
    SUGGESTION_ID_STATUS_EXPIRED: _ClassVar[SuggestionIdStatus]
    SUGGESTION_ID_STATUS_INVALID: _ClassVar[SuggestionIdStatus]
    SUGGESTION_ID_STATUS_OTHER_CALLER: _ClassVar[SuggestionIdStatus]
ACTION_UNSPECIFIED: Action
ACTION_PREFILL: Action
ACTION_SUGGEST: Action
NOT_PREFILLED_REASON_UNSPECIFIED: NotPrefilledReason
NOT_PREFILLED_REASON_BELOW_THRESHOLD: NotPrefilledReason
NOT_PREFILLED_REASON_NOT_CERTIFIED: NotPrefilledReason
NOT_PREFILLED_REASON_CERTIFICATE_VOID: NotPrefilledReason
NOT_PREFILLED_REASON_RELEASE_UNHEALTHY: NotPrefilledReason
NOT_PREFILLED_REASON_NOT_CALIBRATED: NotPrefilledReason
NOT_PREFILLED_REASON_CATCH_ALL_CATEGORY: NotPrefilledReason
NOT_PREFILLED_REASON_PARENT_NOT_PREFILLED: NotPrefilledReason
NOT_PREFILLED_REASON_ONLY_CATEGORY: NotPrefilledReason
NOT_PREFILLED_REASON_OTHER_BRAND: NotPrefilledReason
NOT_PREFILLED_REASON_OUT_OF_SCOPE: NotPrefilledReason
NOT_PREFILLED_REASON_PHOTOS_DISAGREE: NotPrefilledReason
NOT_PREFILLED_REASON_ANCESTOR_GIVEN: NotPrefilledReason
BRAND_KIND_UNSPECIFIED: BrandKind
BRAND_KIND_BRAND: BrandKind
BRAND_KIND_NO_BRAND: BrandKind
BRAND_KIND_OTHER: BrandKind
BRAND_KIND_UNDETERMINED: BrandKind
STAGE_UNSPECIFIED: Stage
STAGE_FETCH: Stage
STAGE_QUEUE: Stage
STAGE_DECODE: Stage
STAGE_MODEL: Stage
STAGE_DECISION: Stage
EXPLANATION_TARGET_UNSPECIFIED: ExplanationTarget
EXPLANATION_TARGET_CATEGORY: ExplanationTarget
EXPLANATION_TARGET_BRAND: ExplanationTarget
FORM_FIELD_UNSPECIFIED: FormField
FORM_FIELD_CATEGORY: FormField
FORM_FIELD_BRAND: FormField
FORM_TREATMENT_UNSPECIFIED: FormTreatment
FORM_TREATMENT_PREFILLED: FormTreatment
FORM_TREATMENT_SUGGESTED: FormTreatment
FORM_TREATMENT_HIDDEN: FormTreatment
SUGGESTION_ID_STATUS_UNSPECIFIED: SuggestionIdStatus
SUGGESTION_ID_STATUS_VALID: SuggestionIdStatus
SUGGESTION_ID_STATUS_MISSING: SuggestionIdStatus
SUGGESTION_ID_STATUS_EXPIRED: SuggestionIdStatus
SUGGESTION_ID_STATUS_INVALID: SuggestionIdStatus
SUGGESTION_ID_STATUS_OTHER_CALLER: SuggestionIdStatus

class ClassifyListingRequest(_message.Message):
    __slots__ = ("listing_id", "photos", "alternative_count", "language_code", "include_embedding", "ancestor_category_id", "hidden")
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ANCESTOR_CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    listing_id: str
    photos: _containers.RepeatedCompositeFieldContainer[Photo]
    alternative_count: int
    language_code: str
    include_embedding: bool
    ancestor_category_id: str
    hidden: bool
    def __init__(self, listing_id: _Optional[str] = ..., photos: _Optional[_Iterable[_Union[Photo, _Mapping]]] = ..., alternative_count: _Optional[int] = ..., language_code: _Optional[str] = ..., include_embedding: _Optional[bool] = ..., ancestor_category_id: _Optional[str] = ..., hidden: _Optional[bool] = ...) -> None: ...

class Photo(_message.Message):
    __slots__ = ("content", "uri")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    uri: str
    def __init__(self, content: _Optional[bytes] = ..., uri: _Optional[str] = ...) -> None: ...

class ClassifyListingResponse(_message.Message):
    __slots__ = ("listing_id", "suggestion_id", "category_path", "brand", "category_alternatives", "brand_alternatives", "photos", "model", "language_code", "embedding", "stage_times")
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    SUGGESTION_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_PATH_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    BRAND_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    PHOTOS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMES_FIELD_NUMBER: _ClassVar[int]
    listing_id: str
    suggestion_id: str
    category_path: _containers.RepeatedCompositeFieldContainer[CategorySuggestion]
    brand: BrandSuggestion
    category_alternatives: _containers.RepeatedCompositeFieldContainer[CategoryAlternative]
    brand_alternatives: _containers.RepeatedCompositeFieldContainer[BrandAlternative]
    photos: _containers.RepeatedCompositeFieldContainer[PhotoResult]
    model: ModelVersion
    language_code: str
    embedding: _containers.RepeatedScalarFieldContainer[float]
    stage_times: _containers.RepeatedCompositeFieldContainer[StageTime]
    def __init__(self, listing_id: _Optional[str] = ..., suggestion_id: _Optional[str] = ..., category_path: _Optional[_Iterable[_Union[CategorySuggestion, _Mapping]]] = ..., brand: _Optional[_Union[BrandSuggestion, _Mapping]] = ..., category_alternatives: _Optional[_Iterable[_Union[CategoryAlternative, _Mapping]]] = ..., brand_alternatives: _Optional[_Iterable[_Union[BrandAlternative, _Mapping]]] = ..., photos: _Optional[_Iterable[_Union[PhotoResult, _Mapping]]] = ..., model: _Optional[_Union[ModelVersion, _Mapping]] = ..., language_code: _Optional[str] = ..., embedding: _Optional[_Iterable[float]] = ..., stage_times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ...) -> None: ...

class CategorySuggestion(_message.Message):
    __slots__ = ("category_id", "name", "probability", "action", "not_prefilled")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    NOT_PREFILLED_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    name: str
    probability: float
    action: Action
    not_prefilled: NotPrefilled
    def __init__(self, category_id: _Optional[str] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ..., action: _Optional[_Union[Action, str]] = ..., not_prefilled: _Optional[_Union[NotPrefilled, _Mapping]] = ...) -> None: ...

class BrandSuggestion(_message.Message):
    __slots__ = ("kind", "brand_id", "name", "probability", "action", "not_prefilled")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    NOT_PREFILLED_FIELD_NUMBER: _ClassVar[int]
    kind: BrandKind
    brand_id: str
    name: str
    probability: float
    action: Action
    not_prefilled: NotPrefilled
    def __init__(self, kind: _Optional[_Union[BrandKind, str]] = ..., brand_id: _Optional[str] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ..., action: _Optional[_Union[Action, str]] = ..., not_prefilled: _Optional[_Union[NotPrefilled, _Mapping]] = ...) -> None: ...

class NotPrefilled(_message.Message):
    __slots__ = ("reason", "message", "threshold", "calibration_listing_count", "required_listing_count")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_LISTING_COUNT_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_LISTING_COUNT_FIELD_NUMBER: _ClassVar[int]
    reason: NotPrefilledReason
    message: str
    threshold: float
    calibration_listing_count: int
    required_listing_count: int
    def __init__(self, reason: _Optional[_Union[NotPrefilledReason, str]] = ..., message: _Optional[str] = ..., threshold: _Optional[float] = ..., calibration_listing_count: _Optional[int] = ..., required_listing_count: _Optional[int] = ...) -> None: ...

class CategoryAlternative(_message.Message):
    __slots__ = ("category_id", "path_names", "probability")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_NAMES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    path_names: _containers.RepeatedScalarFieldContainer[str]
    probability: float
    def __init__(self, category_id: _Optional[str] = ..., path_names: _Optional[_Iterable[str]] = ..., probability: _Optional[float] = ...) -> None: ...

class BrandAlternative(_message.Message):
    __slots__ = ("kind", "brand_id", "name", "probability")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    kind: BrandKind
    brand_id: str
    name: str
    probability: float
    def __init__(self, kind: _Optional[_Union[BrandKind, str]] = ..., brand_id: _Optional[str] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class PhotoResult(_message.Message):
    __slots__ = ("recognition", "error")
    RECOGNITION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    recognition: PhotoRecognition
    error: PhotoError
    def __init__(self, recognition: _Optional[_Union[PhotoRecognition, _Mapping]] = ..., error: _Optional[_Union[PhotoError, _Mapping]] = ...) -> None: ...

class PhotoRecognition(_message.Message):
    __slots__ = ("category_id", "category_name", "category_probability", "brand_kind", "brand_id", "brand_name", "brand_probability", "out_of_scope", "disagrees")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_NAME_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    BRAND_KIND_FIELD_NUMBER: _ClassVar[int]
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    BRAND_NAME_FIELD_NUMBER: _ClassVar[int]
    BRAND_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_SCOPE_FIELD_NUMBER: _ClassVar[int]
    DISAGREES_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    category_name: str
    category_probability: float
    brand_kind: BrandKind
    brand_id: str
    brand_name: str
    brand_probability: float
    out_of_scope: bool
    disagrees: bool
    def __init__(self, category_id: _Optional[str] = ..., category_name: _Optional[str] = ..., category_probability: _Optional[float] = ..., brand_kind: _Optional[_Union[BrandKind, str]] = ..., brand_id: _Optional[str] = ..., brand_name: _Optional[str] = ..., brand_probability: _Optional[float] = ..., out_of_scope: _Optional[bool] = ..., disagrees: _Optional[bool] = ...) -> None: ...

class PhotoError(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: _reasons_pb2.PhotoErrorReason
    message: str
    def __init__(self, reason: _Optional[_Union[_reasons_pb2.PhotoErrorReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

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

class StageTime(_message.Message):
    __slots__ = ("stage", "duration")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    duration: _duration_pb2.Duration
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ClassifyListingsRequest(_message.Message):
    __slots__ = ("sequence", "request")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: ClassifyListingRequest
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[ClassifyListingRequest, _Mapping]] = ...) -> None: ...

class ClassifyListingsResponse(_message.Message):
    __slots__ = ("sequence", "response", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    response: ClassifyListingResponse
    error: _status_pb2.Status
    def __init__(self, sequence: _Optional[int] = ..., response: _Optional[_Union[ClassifyListingResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ExplainPhotoRequest(_message.Message):
    __slots__ = ("photo", "target", "language_code")
    PHOTO_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    photo: Photo
    target: ExplanationTarget
    language_code: str
    def __init__(self, photo: _Optional[_Union[Photo, _Mapping]] = ..., target: _Optional[_Union[ExplanationTarget, str]] = ..., language_code: _Optional[str] = ...) -> None: ...

class ExplainPhotoResponse(_message.Message):
    __slots__ = ("category_id", "brand_id", "no_brand", "name", "probability", "row_count", "column_count", "importances", "model_input", "model")
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    NO_BRAND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    COLUMN_COUNT_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCES_FIELD_NUMBER: _ClassVar[int]
    MODEL_INPUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    brand_id: str
    no_brand: bool
    name: str
    probability: float
    row_count: int
    column_count: int
    importances: _containers.RepeatedScalarFieldContainer[float]
    model_input: bytes
    model: ModelVersion
    def __init__(self, category_id: _Optional[str] = ..., brand_id: _Optional[str] = ..., no_brand: _Optional[bool] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ..., row_count: _Optional[int] = ..., column_count: _Optional[int] = ..., importances: _Optional[_Iterable[float]] = ..., model_input: _Optional[bytes] = ..., model: _Optional[_Union[ModelVersion, _Mapping]] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("suggestion_id", "listing_id", "taxonomy_version", "category_id", "brand", "category_treatment", "brand_treatment")
    SUGGESTION_ID_FIELD_NUMBER: _ClassVar[int]
    LISTING_ID_FIELD_NUMBER: _ClassVar[int]
    TAXONOMY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_TREATMENT_FIELD_NUMBER: _ClassVar[int]
    BRAND_TREATMENT_FIELD_NUMBER: _ClassVar[int]
    suggestion_id: str
    listing_id: str
    taxonomy_version: str
    category_id: str
    brand: BrandChoice
    category_treatment: FormTreatment
    brand_treatment: FormTreatment
    def __init__(self, suggestion_id: _Optional[str] = ..., listing_id: _Optional[str] = ..., taxonomy_version: _Optional[str] = ..., category_id: _Optional[str] = ..., brand: _Optional[_Union[BrandChoice, _Mapping]] = ..., category_treatment: _Optional[_Union[FormTreatment, str]] = ..., brand_treatment: _Optional[_Union[FormTreatment, str]] = ...) -> None: ...

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
    __slots__ = ("suggestion_id_status",)
    SUGGESTION_ID_STATUS_FIELD_NUMBER: _ClassVar[int]
    suggestion_id_status: SuggestionIdStatus
    def __init__(self, suggestion_id_status: _Optional[_Union[SuggestionIdStatus, str]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "category_count", "brand_count", "language_codes", "limits", "guarantees", "photo_uris_enabled", "outcomes_enabled", "suggestion_validity")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_COUNT_FIELD_NUMBER: _ClassVar[int]
    BRAND_COUNT_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    GUARANTEES_FIELD_NUMBER: _ClassVar[int]
    PHOTO_URIS_ENABLED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_ENABLED_FIELD_NUMBER: _ClassVar[int]
    SUGGESTION_VALIDITY_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    category_count: int
    brand_count: int
    language_codes: _containers.RepeatedScalarFieldContainer[str]
    limits: RequestLimits
    guarantees: _containers.RepeatedCompositeFieldContainer[FieldGuarantee]
    photo_uris_enabled: bool
    outcomes_enabled: bool
    suggestion_validity: _duration_pb2.Duration
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., category_count: _Optional[int] = ..., brand_count: _Optional[int] = ..., language_codes: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[RequestLimits, _Mapping]] = ..., guarantees: _Optional[_Iterable[_Union[FieldGuarantee, _Mapping]]] = ..., photo_uris_enabled: _Optional[bool] = ..., outcomes_enabled: _Optional[bool] = ..., suggestion_validity: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RequestLimits(_message.Message):
    __slots__ = ("photo_count_limit", "photo_bytes_limit", "photo_pixels_limit", "photo_side_minimum", "request_bytes_limit", "listing_id_length_limit", "alternative_count_limit", "photo_uri_length_limit")
    PHOTO_COUNT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_PIXELS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_SIDE_MINIMUM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    LISTING_ID_LENGTH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_COUNT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PHOTO_URI_LENGTH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    photo_count_limit: int
    photo_bytes_limit: int
    photo_pixels_limit: int
    photo_side_minimum: int
    request_bytes_limit: int
    listing_id_length_limit: int
    alternative_count_limit: int
    photo_uri_length_limit: int
    def __init__(self, photo_count_limit: _Optional[int] = ..., photo_bytes_limit: _Optional[int] = ..., photo_pixels_limit: _Optional[int] = ..., photo_side_minimum: _Optional[int] = ..., request_bytes_limit: _Optional[int] = ..., listing_id_length_limit: _Optional[int] = ..., alternative_count_limit: _Optional[int] = ..., photo_uri_length_limit: _Optional[int] = ...) -> None: ...

class FieldGuarantee(_message.Message):
    __slots__ = ("field", "category_depth", "precision", "failure_probability", "threshold", "precision_bound", "not_prefilled", "coverage")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_DEPTH_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    PRECISION_BOUND_FIELD_NUMBER: _ClassVar[int]
    NOT_PREFILLED_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    field: FormField
    category_depth: int
    precision: float
    failure_probability: float
    threshold: float
    precision_bound: float
    not_prefilled: NotPrefilled
    coverage: float
    def __init__(self, field: _Optional[_Union[FormField, str]] = ..., category_depth: _Optional[int] = ..., precision: _Optional[float] = ..., failure_probability: _Optional[float] = ..., threshold: _Optional[float] = ..., precision_bound: _Optional[float] = ..., not_prefilled: _Optional[_Union[NotPrefilled, _Mapping]] = ..., coverage: _Optional[float] = ...) -> None: ...

class GetTaxonomyRequest(_message.Message):
    __slots__ = ("taxonomy_version", "language_code")
    TAXONOMY_VERSION_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    taxonomy_version: str
    language_code: str
    def __init__(self, taxonomy_version: _Optional[str] = ..., language_code: _Optional[str] = ...) -> None: ...

class GetTaxonomyResponse(_message.Message):
    __slots__ = ("taxonomy_version", "language_code", "language_codes", "categories", "brands")
    TAXONOMY_VERSION_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_CODES_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    BRANDS_FIELD_NUMBER: _ClassVar[int]
    taxonomy_version: str
    language_code: str
    language_codes: _containers.RepeatedScalarFieldContainer[str]
    categories: _containers.RepeatedCompositeFieldContainer[Category]
    brands: _containers.RepeatedCompositeFieldContainer[Brand]
    def __init__(self, taxonomy_version: _Optional[str] = ..., language_code: _Optional[str] = ..., language_codes: _Optional[_Iterable[str]] = ..., categories: _Optional[_Iterable[_Union[Category, _Mapping]]] = ..., brands: _Optional[_Iterable[_Union[Brand, _Mapping]]] = ...) -> None: ...

class Category(_message.Message):
    __slots__ = ("category_id", "parent_id", "name", "names", "catch_all")
    class NamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    CATCH_ALL_FIELD_NUMBER: _ClassVar[int]
    category_id: str
    parent_id: str
    name: str
    names: _containers.ScalarMap[str, str]
    catch_all: bool
    def __init__(self, category_id: _Optional[str] = ..., parent_id: _Optional[str] = ..., name: _Optional[str] = ..., names: _Optional[_Mapping[str, str]] = ..., catch_all: _Optional[bool] = ...) -> None: ...

class Brand(_message.Message):
    __slots__ = ("brand_id", "name", "names", "aliases")
    class NamesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BRAND_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    brand_id: str
    name: str
    names: _containers.ScalarMap[str, str]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, brand_id: _Optional[str] = ..., name: _Optional[str] = ..., names: _Optional[_Mapping[str, str]] = ..., aliases: _Optional[_Iterable[str]] = ...) -> None: ...
