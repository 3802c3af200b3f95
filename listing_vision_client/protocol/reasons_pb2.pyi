from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    NO_PHOTOS: _ClassVar[ErrorReason]
    TOO_MANY_PHOTOS: _ClassVar[ErrorReason]
    REQUEST_TOO_LARGE: _ClassVar[ErrorReason]
    NO_USABLE_PHOTO: _ClassVar[ErrorReason]
    PHOTOS_UNAVAILABLE: _ClassVar[ErrorReason]
    LISTING_ID_TOO_LONG: _ClassVar[ErrorReason]
    ALTERNATIVE_COUNT_OUT_OF_RANGE: _ClassVar[ErrorReason]
    LANGUAGE_CODE_INVALID: _ClassVar[ErrorReason]
    PHOTO_URI_NOT_ALLOWED: _ClassVar[ErrorReason]
    PHOTO_URIS_DISABLED: _ClassVar[ErrorReason]
    OUTCOME_INVALID: _ClassVar[ErrorReason]
    OUTCOMES_NOT_RECORDED: _ClassVar[ErrorReason]
    TAXONOMY_UNKNOWN: _ClassVar[ErrorReason]
    UNAUTHENTICATED: _ClassVar[ErrorReason]
    QUOTA_EXCEEDED: _ClassVar[ErrorReason]
    TOO_BUSY: _ClassVar[ErrorReason]
    DEADLINE_TOO_SHORT: _ClassVar[ErrorReason]
    SHUTTING_DOWN: _ClassVar[ErrorReason]
    MODEL_UNAVAILABLE: _ClassVar[ErrorReason]
    MODEL_BROKEN: _ClassVar[ErrorReason]
    INTERNAL: _ClassVar[ErrorReason]
    FIELD_MISSING: _ClassVar[ErrorReason]
    FIELD_INVALID: _ClassVar[ErrorReason]
    FIELD_UNKNOWN: _ClassVar[ErrorReason]
    CATEGORY_UNKNOWN: _ClassVar[ErrorReason]
    BRAND_UNKNOWN: _ClassVar[ErrorReason]
    LISTING_ID_MISMATCH: _ClassVar[ErrorReason]
    BODY_UNREADABLE: _ClassVar[ErrorReason]
    TIMEOUT_OUT_OF_RANGE: _ClassVar[ErrorReason]
    ROUTE_NOT_FOUND: _ClassVar[ErrorReason]
    METHOD_NOT_ALLOWED: _ClassVar[ErrorReason]
    CONTENT_TYPE_UNSUPPORTED: _ClassVar[ErrorReason]
    CROSS_SITE_REQUEST: _ClassVar[ErrorReason]
    REQUEST_TIMEOUT: _ClassVar[ErrorReason]

class PhotoErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHOTO_ERROR_REASON_UNSPECIFIED: _ClassVar[PhotoErrorReason]
    PHOTO_EMPTY: _ClassVar[PhotoErrorReason]
    PHOTO_TOO_MANY_BYTES: _ClassVar[PhotoErrorReason]
    PHOTO_TOO_MANY_PIXELS: _ClassVar[PhotoErrorReason]
    PHOTO_TOO_SMALL: _ClassVar[PhotoErrorReason]
    PHOTO_NOT_AN_IMAGE: _ClassVar[PhotoErrorReason]
    PHOTO_TRUNCATED: _ClassVar[PhotoErrorReason]
    PHOTO_UNREADABLE: _ClassVar[PhotoErrorReason]
    PHOTO_DECODER_CRASHED: _ClassVar[PhotoErrorReason]
    PHOTO_TIMEOUT: _ClassVar[PhotoErrorReason]
    PHOTO_NOT_FETCHED: _ClassVar[PhotoErrorReason]
    PHOTO_FETCH_TIMEOUT: _ClassVar[PhotoErrorReason]
    PHOTO_SERVICE_BUSY: _ClassVar[PhotoErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
NO_PHOTOS: ErrorReason
TOO_MANY_PHOTOS: ErrorReason
REQUEST_TOO_LARGE: ErrorReason
NO_USABLE_PHOTO: ErrorReason
PHOTOS_UNAVAILABLE: ErrorReason
LISTING_ID_TOO_LONG: ErrorReason
ALTERNATIVE_COUNT_OUT_OF_RANGE: ErrorReason
LANGUAGE_CODE_INVALID: ErrorReason
PHOTO_URI_NOT_ALLOWED: ErrorReason
PHOTO_URIS_DISABLED: ErrorReason
OUTCOME_INVALID: ErrorReason
OUTCOMES_NOT_RECORDED: ErrorReason
TAXONOMY_UNKNOWN: ErrorReason
UNAUTHENTICATED: ErrorReason
QUOTA_EXCEEDED: ErrorReason
TOO_BUSY: ErrorReason
DEADLINE_TOO_SHORT: ErrorReason
SHUTTING_DOWN: ErrorReason
MODEL_UNAVAILABLE: ErrorReason
MODEL_BROKEN: ErrorReason
INTERNAL: ErrorReason
FIELD_MISSING: ErrorReason
FIELD_INVALID: ErrorReason
FIELD_UNKNOWN: ErrorReason
CATEGORY_UNKNOWN: ErrorReason
BRAND_UNKNOWN: ErrorReason
LISTING_ID_MISMATCH: ErrorReason
BODY_UNREADABLE: ErrorReason
TIMEOUT_OUT_OF_RANGE: ErrorReason
ROUTE_NOT_FOUND: ErrorReason
METHOD_NOT_ALLOWED: ErrorReason
CONTENT_TYPE_UNSUPPORTED: ErrorReason
CROSS_SITE_REQUEST: ErrorReason
REQUEST_TIMEOUT: ErrorReason
PHOTO_ERROR_REASON_UNSPECIFIED: PhotoErrorReason
PHOTO_EMPTY: PhotoErrorReason
PHOTO_TOO_MANY_BYTES: PhotoErrorReason
PHOTO_TOO_MANY_PIXELS: PhotoErrorReason
PHOTO_TOO_SMALL: PhotoErrorReason
PHOTO_NOT_AN_IMAGE: PhotoErrorReason
PHOTO_TRUNCATED: PhotoErrorReason
PHOTO_UNREADABLE: PhotoErrorReason
PHOTO_DECODER_CRASHED: PhotoErrorReason
PHOTO_TIMEOUT: PhotoErrorReason
PHOTO_NOT_FETCHED: PhotoErrorReason
PHOTO_FETCH_TIMEOUT: PhotoErrorReason
PHOTO_SERVICE_BUSY: PhotoErrorReason
