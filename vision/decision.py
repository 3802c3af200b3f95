"""What turns logits into a suggestion: the same code for evaluation, gateway, `classify` and backfill. NumPy only.

Photos of a listing are fused first; from there on a row is a listing. Shapes: P photos, N listings,
C leaf categories, B brand labels (0 is 'no brand'), V nodes of the tree, D its depth.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vision.errors import BundleError
from vision.taxonomy import Taxonomy

__all__ = [
    "BrandAnswer",
    "Calibration",
    "CategoryAnswer",
    "Field",
    "LeafAlternative",
    "Paths",
    "Suggestion",
    "answer_paths",
    "brand_probabilities",
    "category_probabilities",
    "decide",
    "field_name",
    "fuse",
    "node_probabilities",
    "softmax",
]

SCHEMA_VERSION = 1
BRAND_FIELD = "brand"

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Field:
    """The promise for one field of the seller's form: a depth of the tree, or the brand."""

    name: str
    """`category_depth_1` … or `brand`."""
    alpha: float
    """When the field is filled, it is wrong with at most this probability …"""
    delta: float
    """… and that promise itself fails with at most this probability over the draw of the calibration listings."""
    threshold: float | None
    """Fill when the answer's probability is at least this; None: never fill, only suggest."""
    num_listings: int
    """Calibration listings with a known truth for this field."""
    num_filled: int
    """Of these, how many the threshold fills."""
    num_errors: int
    """Of the filled, how many were wrong."""
    why_not: str = ""
    """Why the field is never filled; empty when it is."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures and promises of one model; `calibration.json` of a bundle."""

    category_temperature: float = 1.0
    brand_temperature: float = 1.0
    brand_fusion: Literal["mean", "max"] = "mean"
    fields: tuple[Field, ...] = ()
    certifies: Mapping[str, str]
    """What the promises hold for: sha256 of the model file, preprocessing fingerprint, precision, split."""

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    def void(self, reason: str) -> "Calibration":
        """The same temperatures, with nothing promised and so nothing filled."""
        return replace(self, fields=tuple(replace(field, threshold=None, why_not=reason) for field in self.fields))

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Read what `to_json` wrote.

        Raises:
            BundleError: another schema version, or not a calibration.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw.pop("schema_version", None) != SCHEMA_VERSION:
                raise BundleError(f"calibration: schema_version is not {SCHEMA_VERSION}, the one this version reads")
            return cls(**{**raw, "fields": tuple(Field(**field) for field in raw["fields"])})
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"calibration is not readable: {error}") from error


@dataclass(frozen=True, kw_only=True)
class CategoryAnswer:
    """One step of the suggested path, from the root down."""

    category_id: str
    depth: int
    """1 for a root."""
    probability: float
    """Summed over the leaves below, in [0, 1]."""
    filled: bool
    """Sure enough to fill the field in; otherwise only suggest it."""
    why_suggested: str
    """Empty when filled."""


@dataclass(frozen=True, kw_only=True)
class BrandAnswer:
    brand_index: int
    """Of `taxonomy.brand_labels`; 0 means 'has no brand'."""
    probability: float
    filled: bool
    why_suggested: str


@dataclass(frozen=True, kw_only=True)
class LeafAlternative:
    category_id: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The answer for one listing."""

    path: tuple[CategoryAnswer, ...]
    """Ancestors of the likeliest leaf and the leaf itself: always one consistent path."""
    brand: BrandAnswer
    alternatives: tuple[LeafAlternative, ...]
    """The likeliest leaves, best first, for a list to choose from."""

    @property
    def deepest_filled(self) -> CategoryAnswer | None:
        filled = [step for step in self.path if step.filled]
        return filled[-1] if filled else None


class Paths(NamedTuple):
    """The suggested path of each row; -1 and 0.0 beyond a path's end."""

    nodes: Ints
    """(N, D) index into `taxonomy.categories`."""
    scores: Floats
    """(N, D) node probability."""


def field_name(depth: int) -> str:
    return f"category_depth_{depth}"


def softmax(logits: Floats) -> Floats:
    """(N, C) probabilities, row by row, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def fuse(logits: Floats, groups: Ints, *, how: Literal["mean", "max"]) -> Floats:
    """(P, K) logits of photos as (N, K) logits of listings; row i of the result is group i.

    Args:
        groups: (P,) numbers 0…N-1, each at least once.
    """
    num_listings = int(groups.max()) + 1
    if how == "max":
        fused = np.full((num_listings, logits.shape[1]), -np.inf)
        np.maximum.at(fused, groups, logits)
        return fused
    fused = np.zeros((num_listings, logits.shape[1]))
    np.add.at(fused, groups, logits)
    return fused / np.bincount(groups, minlength=num_listings)[:, None]


def category_probabilities(logits: Floats, groups: Ints, calibration: Calibration) -> Floats:
    """(N, C) leaf probabilities of listings from (P, C) logits of photos."""
    return softmax(fuse(logits, groups, how="mean") / calibration.category_temperature)


def brand_probabilities(logits: Floats, groups: Ints, calibration: Calibration) -> Floats:
    """(N, B) brand probabilities of listings from (P, B) logits of photos."""
    return softmax(fuse(logits, groups, how=calibration.brand_fusion) / calibration.brand_temperature)


def node_probabilities(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Floats:
    """(N, V): each node's probability as the sum of the leaves below it."""
    return np.minimum(leaf_probabilities @ taxonomy.leaves_to_nodes, 1.0)


def answer_paths(leaf_probabilities: Floats, taxonomy: Taxonomy) -> Paths:
    """The path from root to likeliest leaf of each row, with the probability of each step."""
    nodes = taxonomy.leaf_paths[leaf_probabilities.argmax(axis=1)]
    all_scores = node_probabilities(leaf_probabilities, taxonomy)
    scores = np.where(nodes >= 0, np.take_along_axis(all_scores, np.maximum(nodes, 0), axis=1), 0.0)
    return Paths(nodes, scores)


def decide(
    category_logits: Floats,
    brand_logits: Floats,
    *,
    taxonomy: Taxonomy,
    calibration: Calibration,
    num_alternatives: int = 5,
) -> Suggestion:
    """The suggestion for one listing from the logits of its photos, (P, C) and (P, B), P at least 1."""
    one_listing = np.zeros(len(category_logits), dtype=np.int64)
    leaves = category_probabilities(category_logits, one_listing, calibration)
    paths = answer_paths(leaves, taxonomy)
    steps = []
    for depth, (node, score) in enumerate(zip(paths.nodes[0], paths.scores[0], strict=True), start=1):
        if node < 0:
            break
        filled, why = _fills(calibration.field(field_name(depth)), float(score))
        steps.append(
            CategoryAnswer(
                category_id=taxonomy.categories[int(node)].id,
                depth=depth,
                probability=float(score),
                filled=filled,
                why_suggested=why,
            )
        )
    brands = brand_probabilities(brand_logits, one_listing, calibration)[0]
    best_brand = int(brands.argmax())
    filled, why = _fills(calibration.field(BRAND_FIELD), float(brands[best_brand]))
    best_leaves = np.argsort(-leaves[0], kind="stable")[:num_alternatives]
    return Suggestion(
        path=tuple(steps),
        brand=BrandAnswer(
            brand_index=best_brand, probability=float(brands[best_brand]), filled=filled, why_suggested=why
        ),
        alternatives=tuple(
            LeafAlternative(category_id=taxonomy.leaf_ids[int(leaf)], probability=float(leaves[0, leaf]))
            for leaf in best_leaves
        ),
    )


def _fills(field: Field | None, probability: float) -> tuple[bool, str]:
    if field is None:
        return False, "this model carries no promise for this field"
    if field.threshold is None:
        return False, field.why_not
    if probability < field.threshold:
        return False, f"probability {probability:.3f} is below the certified threshold {field.threshold:.3f}"
    return True, ""
