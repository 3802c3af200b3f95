"""What is suggested for one listing, and why a field is not prefilled."""

from dataclasses import dataclass
from typing import Literal

from vision.calibration import UncertifiedCode
from vision.taxonomy import OTHER_BRAND

__all__ = [
    "BrandAlternative",
    "BrandSuggestion",
    "CategorySuggestion",
    "LeafAlternative",
    "NotPrefilled",
    "NotPrefilledCode",
    "PhotoRecognition",
    "Suggestion",
    "format_confidence",
    "format_shortfall",
    "is_brand_offered",
]

NotPrefilledCode = (
    UncertifiedCode
    | Literal[
        "BELOW_THRESHOLD",
        "NOT_CALIBRATED",
        "CATCH_ALL_CATEGORY",
        "OTHER_BRAND",
        "OUT_OF_SCOPE",
        "PHOTOS_DISAGREE",
        "ANCESTOR_GIVEN",
    ]
)
"""Values of the contract's NotPrefilledReason, without its prefix."""

_MIN_OFFERED_PROBABILITY = 0.5


@dataclass(frozen=True, kw_only=True)
class NotPrefilled:
    """Why a field is only suggested."""

    code: NotPrefilledCode
    message: str
    threshold: float | None = None
    """The certified threshold that the probability does not reach."""
    num_listings: int | None = None
    """Calibration listings with a known truth, where these were too few or the model erred too often on them."""
    num_required: int | None = None
    """Filled calibration listings, all right, that the certificate needs."""


@dataclass(frozen=True, kw_only=True)
class CategorySuggestion:
    """One step of the suggested path, from the root down."""

    category_id: str
    depth: int
    """1 for a root."""
    probability: float
    """Summed over the leaves below, in [0, 1]."""
    not_prefilled: NotPrefilled | None
    """Why the field is only suggested; None: it is prefilled."""

    @property
    def filled(self) -> bool:
        return self.not_prefilled is None


@dataclass(frozen=True, kw_only=True)
class BrandSuggestion:
    brand_index: int
    """Index into `taxonomy.brand_labels`; 0 means 'has no brand', `OTHER_BRAND` an unknown brand."""
    probability: float
    """In [0, 1]; 0 for an unknown brand, which has no probability of its own."""
    not_prefilled: NotPrefilled | None
    """As of `CategorySuggestion`."""

    @property
    def filled(self) -> bool:
        return self.not_prefilled is None

    @property
    def offered(self) -> bool:
        """Whether it is likelier right than wrong; a brand that is not is no suggestion."""
        return is_brand_offered(self.brand_index, self.probability, filled=self.filled)


def is_brand_offered(brand_index: int, probability: float, *, filled: bool) -> bool:
    """Return `BrandSuggestion.offered`."""
    return filled or brand_index == OTHER_BRAND or probability >= _MIN_OFFERED_PROBABILITY


@dataclass(frozen=True, kw_only=True)
class LeafAlternative:
    category_id: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class BrandAlternative:
    brand_index: int
    """Index into `taxonomy.brand_labels`."""
    probability: float


@dataclass(frozen=True, kw_only=True)
class PhotoRecognition:
    """What one photo of a listing shows, seen alone."""

    category_id: str
    """The likeliest leaf."""
    category_probability: float
    brand_index: int
    """As of `BrandSuggestion`; 0 where the taxonomy has no brands."""
    brand_probability: float
    in_scope: bool
    """Whether the taxonomy covers what it shows; if not, it has no part in the suggestion if another is in scope."""
    disagrees: bool
    """Whether it contradicts the first category on which the photos do not agree."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The suggestion for one listing."""

    path: tuple[CategorySuggestion, ...]
    """Ancestors of the likeliest leaf and the leaf itself: always one consistent path."""
    brand: BrandSuggestion | None
    """None where the taxonomy has no brands."""
    alternatives: tuple[LeafAlternative, ...]
    """The likeliest leaves, best first."""
    brand_alternatives: tuple[BrandAlternative, ...]
    """The likeliest brand labels, 'no brand' being one, best first."""
    in_scope: bool = True
    """Whether the taxonomy covers what the photos show; nothing is prefilled otherwise."""
    photos: tuple[PhotoRecognition, ...] = ()
    """Each photo alone; the only photo of a listing shows what is suggested."""


def format_confidence(probability: float) -> str:
    """Return a confidence in percent for people; never 100 %."""
    return "over 99.9%" if probability >= 0.9995 else f"{probability:.1%}"


def format_shortfall(probability: float, threshold: float) -> tuple[str, str]:
    """Return a probability and the larger threshold that it misses in percent, with the digits that tell them apart."""
    for digits in range(1, 7):
        shown = f"{probability:.{digits}%}", f"{threshold:.{digits}%}"
        if shown[0] != shown[1] and not shown[0].startswith("100."):
            return shown
    return f"{probability:%}", f"over {probability:%}"
