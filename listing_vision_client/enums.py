"""Closed sets of the contract as Python values: a member's value is its name in the contract.

A later service may send values that this version does not know. They become the default, which `_missing_` returns.
"""

from enum import StrEnum
from typing import Self

__all__ = [
    "Action",
    "BrandKind",
    "ExplanationTarget",
    "FormField",
    "FormTreatment",
    "NotPrefilledReason",
    "PhotoErrorReason",
    "Stage",
    "SuggestionIdStatus",
]


class _ContractEnum(StrEnum):
    @classmethod
    def _missing_(cls, value: object) -> Self:
        return next(iter(cls))


class Action(_ContractEnum):
    """What a form does with a suggestion."""

    UNSPECIFIED = "ACTION_UNSPECIFIED"
    PREFILL = "ACTION_PREFILL"
    SUGGEST = "ACTION_SUGGEST"


class NotPrefilledReason(_ContractEnum):
    """Why a field is only suggested."""

    UNSPECIFIED = "NOT_PREFILLED_REASON_UNSPECIFIED"
    BELOW_THRESHOLD = "NOT_PREFILLED_REASON_BELOW_THRESHOLD"
    NOT_CERTIFIED = "NOT_PREFILLED_REASON_NOT_CERTIFIED"
    CERTIFICATE_VOID = "NOT_PREFILLED_REASON_CERTIFICATE_VOID"
    RELEASE_UNHEALTHY = "NOT_PREFILLED_REASON_RELEASE_UNHEALTHY"
    NOT_CALIBRATED = "NOT_PREFILLED_REASON_NOT_CALIBRATED"
    CATCH_ALL_CATEGORY = "NOT_PREFILLED_REASON_CATCH_ALL_CATEGORY"
    PARENT_NOT_PREFILLED = "NOT_PREFILLED_REASON_PARENT_NOT_PREFILLED"
    ONLY_CATEGORY = "NOT_PREFILLED_REASON_ONLY_CATEGORY"
    OTHER_BRAND = "NOT_PREFILLED_REASON_OTHER_BRAND"
    OUT_OF_SCOPE = "NOT_PREFILLED_REASON_OUT_OF_SCOPE"
    PHOTOS_DISAGREE = "NOT_PREFILLED_REASON_PHOTOS_DISAGREE"
    ANCESTOR_GIVEN = "NOT_PREFILLED_REASON_ANCESTOR_GIVEN"


class BrandKind(_ContractEnum):
    """Kind of a brand prediction."""

    UNSPECIFIED = "BRAND_KIND_UNSPECIFIED"
    BRAND = "BRAND_KIND_BRAND"
    NO_BRAND = "BRAND_KIND_NO_BRAND"
    OTHER = "BRAND_KIND_OTHER"
    UNDETERMINED = "BRAND_KIND_UNDETERMINED"


class Stage(_ContractEnum):
    """A processing stage."""

    UNSPECIFIED = "STAGE_UNSPECIFIED"
    FETCH = "STAGE_FETCH"
    QUEUE = "STAGE_QUEUE"
    DECODE = "STAGE_DECODE"
    MODEL = "STAGE_MODEL"
    DECISION = "STAGE_DECISION"


class ExplanationTarget(_ContractEnum):
    """What an explanation explains."""

    UNSPECIFIED = "EXPLANATION_TARGET_UNSPECIFIED"
    """The category."""
    CATEGORY = "EXPLANATION_TARGET_CATEGORY"
    BRAND = "EXPLANATION_TARGET_BRAND"


class FormField(_ContractEnum):
    """A field of a seller's form."""

    UNSPECIFIED = "FORM_FIELD_UNSPECIFIED"
    CATEGORY = "FORM_FIELD_CATEGORY"
    BRAND = "FORM_FIELD_BRAND"


class FormTreatment(_ContractEnum):
    """How the form presented a suggestion."""

    UNSPECIFIED = "FORM_TREATMENT_UNSPECIFIED"
    """The action of the recorded suggestion is assumed."""
    PREFILLED = "FORM_TREATMENT_PREFILLED"
    SUGGESTED = "FORM_TREATMENT_SUGGESTED"
    HIDDEN = "FORM_TREATMENT_HIDDEN"


class SuggestionIdStatus(_ContractEnum):
    """Validity of a suggestion id."""

    UNSPECIFIED = "SUGGESTION_ID_STATUS_UNSPECIFIED"
    VALID = "SUGGESTION_ID_STATUS_VALID"
    MISSING = "SUGGESTION_ID_STATUS_MISSING"
    EXPIRED = "SUGGESTION_ID_STATUS_EXPIRED"
    INVALID = "SUGGESTION_ID_STATUS_INVALID"
    OTHER_CALLER = "SUGGESTION_ID_STATUS_OTHER_CALLER"


class PhotoErrorReason(_ContractEnum):
    """Why a photo is unusable; the same names are the reasons of field violations."""

    UNSPECIFIED = "PHOTO_ERROR_REASON_UNSPECIFIED"
    EMPTY = "PHOTO_EMPTY"
    TOO_MANY_BYTES = "PHOTO_TOO_MANY_BYTES"
    TOO_MANY_PIXELS = "PHOTO_TOO_MANY_PIXELS"
    TOO_SMALL = "PHOTO_TOO_SMALL"
    NOT_AN_IMAGE = "PHOTO_NOT_AN_IMAGE"
    TRUNCATED = "PHOTO_TRUNCATED"
    UNREADABLE = "PHOTO_UNREADABLE"
    DECODER_CRASHED = "PHOTO_DECODER_CRASHED"
    TIMEOUT = "PHOTO_TIMEOUT"
    NOT_FETCHED = "PHOTO_NOT_FETCHED"
    FETCH_TIMEOUT = "PHOTO_FETCH_TIMEOUT"
    SERVICE_BUSY = "PHOTO_SERVICE_BUSY"

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls("PHOTO_UNREADABLE")
