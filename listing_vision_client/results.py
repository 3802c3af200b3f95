"""What calls return: the responses of the contract as frozen dataclasses.

Fields bear the contract's names; its comments say more about each. A field that may be absent is None, a repeated one
is a tuple, a duration is in seconds (`_s`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from listing_vision_client.enums import (
    Action,
    BrandKind,
    FormField,
    NotPrefilledReason,
    PhotoErrorReason,
    Stage,
    SuggestionIdStatus,
)

__all__ = [
    "Brand",
    "BrandAlternative",
    "BrandSuggestion",
    "Category",
    "CategoryAlternative",
    "CategorySuggestion",
    "Explanation",
    "FieldGuarantee",
    "ListingSuggestion",
    "ModelVersion",
    "NotPrefilled",
    "OutcomeReceipt",
    "PhotoError",
    "PhotoRecognition",
    "PhotoResult",
    "RequestLimits",
    "ServingModel",
    "StageTime",
    "Taxonomy",
]


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """Versions of the model, taxonomy and calibration behind a suggestion."""

    name: str
    version: str
    """Changes with every change of the weights."""
    taxonomy_version: str
    calibration_version: str


@dataclass(frozen=True, kw_only=True)
class NotPrefilled:
    """Why a field is only suggested, with the numbers behind it."""

    reason: NotPrefilledReason
    message: str
    """For people, English; may change."""
    threshold: float | None
    """Certified threshold that the probability does not reach. Range [0, 1]."""
    calibration_listing_count: int | None
    required_listing_count: int | None


@dataclass(frozen=True, kw_only=True)
class CategorySuggestion:
    """One level of the category path."""

    category_id: str
    name: str
    probability: float
    """Range [0, 1]."""
    action: Action
    not_prefilled: NotPrefilled | None
    """None: the level is prefilled."""


@dataclass(frozen=True, kw_only=True)
class BrandSuggestion:
    """The suggested brand."""

    kind: BrandKind
    brand_id: str
    """Empty unless kind is BRAND."""
    name: str
    probability: float | None
    """Range [0, 1]; None if kind is OTHER or UNDETERMINED."""
    action: Action
    not_prefilled: NotPrefilled | None
    """None: the brand is prefilled."""


@dataclass(frozen=True, kw_only=True)
class CategoryAlternative:
    """An alternative leaf category."""

    category_id: str
    path_names: tuple[str, ...]
    """From the root to the leaf."""
    probability: float


@dataclass(frozen=True, kw_only=True)
class BrandAlternative:
    """An alternative brand."""

    kind: BrandKind
    brand_id: str
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class PhotoRecognition:
    """Prediction from one photo alone."""

    category_id: str
    category_name: str
    category_probability: float
    brand_kind: BrandKind
    brand_id: str
    brand_name: str
    brand_probability: float | None
    out_of_scope: bool
    """Whether the photo shows nothing that the taxonomy covers; unless all are so, it has no part in the suggestion."""
    disagrees: bool
    """Whether the photo stands out: it speaks against the first level whose reason is PHOTOS_DISAGREE."""


@dataclass(frozen=True, kw_only=True)
class PhotoError:
    """Why a photo was not used."""

    reason: PhotoErrorReason
    message: str
    """For people; may change."""


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """Result for one photo: exactly one of the two."""

    recognition: PhotoRecognition | None
    error: PhotoError | None


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Duration of one processing stage."""

    stage: Stage
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class ListingSuggestion:
    """The suggestion for one listing."""

    listing_id: str
    suggestion_id: str
    """Signed name of this suggestion, for `report_outcome`."""
    category_path: tuple[CategorySuggestion, ...]
    """From a root to a leaf; never empty."""
    brand: BrandSuggestion | None
    """None if the taxonomy has no brands."""
    category_alternatives: tuple[CategoryAlternative, ...]
    """Most likely leaf categories, in descending order of probability."""
    brand_alternatives: tuple[BrandAlternative, ...]
    photos: tuple[PhotoResult, ...]
    """Same order and length as the photos of the call."""
    model: ModelVersion
    language_code: str
    embedding: tuple[float, ...]
    """Empty unless it was asked for."""
    stage_times: tuple[StageTime, ...]

    @property
    def out_of_scope(self) -> bool:
        """Whether the photos show nothing that the taxonomy covers; nothing is then prefilled."""
        reason = self.category_path[0].not_prefilled
        return reason is not None and reason.reason == NotPrefilledReason.OUT_OF_SCOPE


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Occlusion map of one photo: the decrease of `probability` when a region is occluded."""

    category_id: str | None
    brand_id: str | None
    no_brand: bool
    """Whether 'no brand' is explained; else one of the two ids is set."""
    name: str
    probability: float
    row_count: int
    column_count: int
    importances: tuple[float, ...]
    """Row-major, `row_count` times `column_count`. Range [-1, 1]."""
    model_input: bytes
    """The preprocessed photo, as JPEG."""
    model: ModelVersion


@dataclass(frozen=True, kw_only=True)
class OutcomeReceipt:
    """An outcome was accepted for recording."""

    suggestion_id_status: SuggestionIdStatus
    """VALID: the outcome counts in reports."""


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits of a request."""

    photo_count_limit: int
    photo_bytes_limit: int
    photo_pixels_limit: int
    photo_side_minimum: int
    request_bytes_limit: int
    listing_id_length_limit: int
    alternative_count_limit: int
    photo_uri_length_limit: int


@dataclass(frozen=True, kw_only=True)
class FieldGuarantee:
    """Statistical guarantee on the precision of one prefilled field."""

    field: FormField
    category_depth: int
    """1 for the roots; 0 for the brand, and if the guarantee is for the deepest prefilled category of the path."""
    precision: float
    failure_probability: float
    threshold: float | None
    precision_bound: float | None
    not_prefilled: NotPrefilled | None
    coverage: float


@dataclass(frozen=True, kw_only=True)
class ServingModel:
    """The model that serves, its limits and guarantees."""

    model: ModelVersion
    category_count: int
    brand_count: int
    language_codes: tuple[str, ...]
    limits: RequestLimits
    guarantees: tuple[FieldGuarantee, ...]
    photo_uris_enabled: bool
    outcomes_enabled: bool
    suggestion_validity_s: float


@dataclass(frozen=True, kw_only=True)
class Category:
    """A category of the taxonomy."""

    category_id: str
    parent_id: str | None
    """None: a root."""
    name: str
    names: Mapping[str, str]
    """By BCP 47 language tag."""
    catch_all: bool


@dataclass(frozen=True, kw_only=True)
class Brand:
    """A brand of the taxonomy."""

    brand_id: str
    name: str
    names: Mapping[str, str]
    aliases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """A forest of categories and a list of brands."""

    taxonomy_version: str
    language_code: str
    language_codes: tuple[str, ...]
    categories: tuple[Category, ...]
    brands: tuple[Brand, ...]
