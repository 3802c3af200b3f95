"""Listings that two models are compared on: labels that both know, photos that both can use, logits of both.

Shapes: P photos of N listings.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from training.evaluation.ground_truth import merge_listing_labels
from training.inference.evaluated_model import EvaluatedModel
from training.inference.predictions import iterate_usable_photos
from vision.errors import ManifestError
from vision.images import Preprocessing
from vision.manifest import UNLABELLED, Labels, Manifest
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = ["CommonLabels", "CommonListings", "ExcludedLabel", "PhotoLogits", "match_labels", "predict_both"]

Ints = npt.NDArray[np.int64]
_FindId = Callable[[str], str | None]
ExclusionReason = Literal[
    "unknown to A", "unknown to B", "unknown to both", "not the same id in both", "a leaf of A only", "a leaf of B only"
]


@dataclass(frozen=True, kw_only=True)
class ExcludedLabel:
    """A label whose listings the models cannot be compared on."""

    field: Literal["category", "brand"]
    label: str
    """As written in the manifest."""
    reason: ExclusionReason
    num_listings: int


class _LabelTable(NamedTuple):
    """The K different labels of one column in two taxonomies."""

    texts: tuple[str, ...]
    in_a: Ints
    """(K,) node or brand index in A's own taxonomy."""
    in_b: Ints
    reasons: tuple[ExclusionReason | None, ...]
    """(K,) why the label is not compared; None where both know it by one id."""
    codes: Ints
    """(rows of the manifest,) which of the K; -1 where empty."""


@dataclass(frozen=True, kw_only=True)
class CommonLabels:
    """The labels of N listings, in each model's own indices."""

    in_a: Labels
    """A category that A does not know is not labelled; a brand that it does not know is `OTHER_BRAND`."""
    in_b: Labels
    categories_shared: npt.NDArray[np.bool_]
    """(N,) labelled with a category that both know by one id."""
    brands_shared: npt.NDArray[np.bool_]
    """(N,) labelled with a brand that both know by one id, or that neither knows: `OTHER_BRAND` for both."""
    excluded_labels: tuple[ExcludedLabel, ...]


class PhotoLogits(NamedTuple):
    category: npt.NDArray[np.float32]
    """(P, C)."""
    brand: npt.NDArray[np.float32]
    """(P, B)."""
    scope: npt.NDArray[np.float32]
    """(P,) scope scores."""


@dataclass(frozen=True, kw_only=True)
class CommonListings:
    """Logits of both models for the photos that both can use, in the manifest's order."""

    a: PhotoLogits
    b: PhotoLogits
    labels: CommonLabels
    groups: Ints
    """(P,) listing number 0…N-1."""
    listing_ids: tuple[str, ...]
    """N ids."""
    photo_urls: tuple[str, ...]
    """P URLs."""
    unusable: tuple[str, ...]
    """The error of each photo that is not among the P."""

    def get_photo_urls(self, listing: int) -> tuple[str, ...]:
        order, starts = self._rows_by_listing
        return tuple(self.photo_urls[row] for row in order[starts[listing] : starts[listing + 1]])

    @functools.cached_property
    def _rows_by_listing(self) -> tuple[Ints, Ints]:
        """Rows ordered by listing, and where each listing's rows begin."""
        order = np.argsort(self.groups, kind="stable")
        return order, np.searchsorted(self.groups[order], np.arange(len(self.listing_ids) + 1))


def predict_both(manifest: Manifest, a: EvaluatedModel, b: EvaluatedModel, *, batch_size: int = 64) -> CommonListings:
    """Decode and classify every photo, decoding once where both models have the same preprocessing.

    Raises:
        ManifestError: no label that both models know, before anything is decoded; or no photo can be used.
    """
    categories = _look_up_categories(manifest, a.taxonomy, b.taxonomy)
    brands = _look_up_brands(manifest, a.taxonomy, b.taxonomy)
    _require_common(categories, brands, a, b)
    unusable: list[str] = []
    if a.preprocessing == b.preprocessing:
        rows_a, (logits_a, logits_b) = _infer(manifest, a.preprocessing, [a, b], unusable, batch_size=batch_size)
        rows_b = rows_a
    else:
        rows_a, (logits_a,) = _infer(manifest, a.preprocessing, [a], unusable, batch_size=batch_size)
        rows_b, (logits_b,) = _infer(manifest, b.preprocessing, [b], unusable, batch_size=batch_size)
    kept, from_a, from_b = np.intersect1d(rows_a, rows_b, assume_unique=True, return_indices=True)
    if len(kept) == 0:
        raise ManifestError("no photo of the manifest can be used by both models:", unusable)
    used = manifest.take(kept)
    groups = used.number_listings()
    firsts = np.unique(groups, return_index=True)[1]
    ids = used.column("listing_id").to_pylist()
    return CommonListings(
        a=PhotoLogits(*(part[from_a] for part in logits_a)),
        b=PhotoLogits(*(part[from_b] for part in logits_b)),
        labels=_label_listings(categories, brands, kept, groups),
        groups=groups,
        listing_ids=tuple(ids[first] for first in firsts),
        photo_urls=tuple(used.get_photo_url(row) for row in range(len(used))),
        unusable=tuple(dict.fromkeys(unusable)),
    )


def match_labels(manifest: Manifest, a: Taxonomy, b: Taxonomy) -> CommonLabels:
    """The labels of the manifest's listings in two taxonomies."""
    all_rows = np.arange(len(manifest))
    return _label_listings(
        _look_up_categories(manifest, a, b), _look_up_brands(manifest, a, b), all_rows, manifest.number_listings()
    )


def _infer(
    manifest: Manifest,
    preprocessing: Preprocessing,
    models: list[EvaluatedModel],
    unusable: list[str],
    *,
    batch_size: int,
) -> tuple[Ints, list[PhotoLogits]]:
    """The rows of the usable photos, and each model's logits for them."""
    kept: list[int] = []
    logits_of: list[list[PhotoLogits]] = [[] for _ in models]
    for rows, photos in iterate_usable_photos(manifest, preprocessing, unusable=unusable, batch_size=batch_size):
        kept += rows
        for model, batches in zip(models, logits_of, strict=True):
            logits = model.infer(photos)
            batches.append(PhotoLogits(logits.category, logits.brand, logits.scope))
    joined = [PhotoLogits(*(np.concatenate(part) for part in zip(*batches, strict=True))) for batches in logits_of]
    return np.array(kept), joined


def _look_up_categories(manifest: Manifest, a: Taxonomy, b: Taxonomy) -> _LabelTable:
    def create_finder(taxonomy: Taxonomy) -> _FindId:
        return _return_none_if_unknown(taxonomy.find_category)

    return _look_up(
        manifest, "category", (create_finder(a), create_finder(b)), (a.node_index, b.node_index), missing=UNLABELLED
    )


def _look_up_brands(manifest: Manifest, a: Taxonomy, b: Taxonomy) -> _LabelTable:
    ids_a, ids_b = _map_brand_ids(a), _map_brand_ids(b)

    def create_finder(taxonomy: Taxonomy, ids: dict[int, str]) -> _FindId:
        return _return_none_if_unknown(lambda text: ids[taxonomy.find_brand(text)])

    return _look_up(
        manifest,
        "brand",
        (create_finder(a, ids_a), create_finder(b, ids_b)),
        ({id_: index for index, id_ in ids_a.items()}, {id_: index for index, id_ in ids_b.items()}),
        missing=OTHER_BRAND,
    )


def _map_brand_ids(taxonomy: Taxonomy) -> dict[int, str]:
    """Brand index to id; 'no brand' and 'other brand' have one that no taxonomy file can hold by accident."""
    listed = {index: brand.id for index, brand in enumerate(taxonomy.brands, start=1)}
    return {0: "\0no brand", OTHER_BRAND: "\0other brand", **listed}


def _look_up(
    manifest: Manifest,
    column: str,
    find_ids: tuple[_FindId, _FindId],
    id_indices: tuple[Mapping[str, int], Mapping[str, int]],
    *,
    missing: int,
) -> _LabelTable:
    """Look up every label of a column in two taxonomies; `id_indices` map an id to its index in each.

    A manifest written for one version may name a category by a path that the other has moved: an id that only one of
    them finds is looked up in the other.
    """
    written = [str(text).strip() for text in manifest.column(column).to_pylist()]
    texts = tuple(dict.fromkeys(text for text in written if text))
    code_of = {text: code for code, text in enumerate(texts)} | {"": UNLABELLED}
    indices: tuple[list[int], list[int]] = ([], [])
    reasons: list[ExclusionReason | None] = []
    for text in texts:
        found_a, found_b = (find(text) for find in find_ids)
        at_a, at_b = (
            index_of_id.get(found if found is not None else other or "")
            for index_of_id, found, other in zip(id_indices, (found_a, found_b), (found_b, found_a), strict=True)
        )
        reason = _explain_exclusion(at_a, at_b, same_id=found_a is None or found_b is None or found_a == found_b)
        reasons.append(None if reason == "unknown to both" and missing == OTHER_BRAND else reason)
        indices[0].append(missing if at_a is None else at_a)
        indices[1].append(missing if at_b is None else at_b)
    return _LabelTable(
        texts,
        np.array(indices[0], dtype=np.int64),
        np.array(indices[1], dtype=np.int64),
        tuple(reasons),
        np.array([code_of[text] for text in written], dtype=np.int64),
    )


def _explain_exclusion(at_a: int | None, at_b: int | None, *, same_id: bool) -> ExclusionReason | None:
    if at_a is None:
        return "unknown to both" if at_b is None else "unknown to A"
    if at_b is None:
        return "unknown to B"
    return None if same_id else "not the same id in both"


def _return_none_if_unknown(find: Callable[[str], str]) -> _FindId:
    def found(text: str) -> str | None:
        try:
            return find(text)
        except KeyError:
            return None

    return found


def _require_common(categories: _LabelTable, brands: _LabelTable, a: EvaluatedModel, b: EvaluatedModel) -> None:
    # 'no brand' and 'other brand' are known to every taxonomy: these alone are not worth a comparison.
    listed = (brands.in_a > 0) & (brands.in_b > 0)
    if None in categories.reasons or any(
        reason is None and at for reason, at in zip(brands.reasons, listed, strict=True)
    ):
        return
    problems = [
        f"{field} {text!r}: {reason}"
        for field, known in (("category", categories), ("brand", brands))
        for text, reason in zip(known.texts, known.reasons, strict=True)
        if reason
    ]
    raise ManifestError(
        "nothing to compare: no category or brand label of these listings is known to both models "
        f"(A: taxonomy {a.taxonomy.version!r}, B: taxonomy {b.taxonomy.version!r}); "
        + ("give models whose taxonomies share ids:" if problems else "give a manifest with labels"),
        problems,
    )


def _label_listings(categories: _LabelTable, brands: _LabelTable, rows: Ints, groups: Ints) -> CommonLabels:
    codes = merge_listing_labels(Labels(category_nodes=categories.codes[rows], brands=brands.codes[rows]), groups)
    excluded_labels: list[ExcludedLabel] = []
    shared = []
    for field, known, of_listing in (
        ("category", categories, codes.category_nodes),
        ("brand", brands, codes.brands),
    ):
        is_shared = np.array([reason is None for reason in known.reasons] + [False])
        shared.append(is_shared[of_listing])
        for code, num in sorted(Counter(of_listing[of_listing >= 0].tolist()).items()):
            reason = known.reasons[code]
            if reason:
                excluded_labels.append(
                    ExcludedLabel(
                        field="brand" if field == "brand" else "category",
                        label=known.texts[code],
                        reason=reason,
                        num_listings=num,
                    )
                )
    return CommonLabels(
        in_a=_translate(categories.in_a, brands.in_a, codes),
        in_b=_translate(categories.in_b, brands.in_b, codes),
        categories_shared=shared[0],
        brands_shared=shared[1],
        excluded_labels=tuple(excluded_labels),
    )


def _translate(categories: Ints, brands: Ints, codes: Labels) -> Labels:
    # Code -1, 'not labelled', finds the last value.
    return Labels(
        category_nodes=np.append(categories, UNLABELLED)[codes.category_nodes],
        brands=np.append(brands, UNLABELLED)[codes.brands],
    )
