"""Scores that a backfill has stored, and which of its suggestions labels show to be right."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from serving.backfill.output import CLASSIFIED
from serving.errors import BackfillError
from vision.manifest import OUT_OF_SCOPE, PLANNED_SPLIT, UNLABELLED, Manifest
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = ["ListingLabel", "StoredScores", "compare_with_labels", "read_labels", "read_scores"]

_COLUMNS = ("listing_id", "result", "category_path", "brand", "out_of_scope", "photos_disagree")


class ListingLabel(NamedTuple):
    """Indices as in `vision.manifest.Labels`."""

    category_node: int
    brand: int


class StoredScores(NamedTuple):
    """Suggestions of L listings, D being the depth of the taxonomy."""

    nodes: npt.NDArray[np.int64]
    """(L, D) index into `taxonomy.categories`; -1 beyond a path's end and where nothing was classified."""
    categories: npt.NDArray[np.float32]
    """(L, D) probabilities, not rising from the root down; -inf where the step is never filled."""
    brand_labels: npt.NDArray[np.int64]
    """(L,) brand logit index; 0 is 'no brand', `OTHER_BRAND` where no brand was offered."""
    brands: npt.NDArray[np.float32]
    """(L,) probabilities; -inf where the brand is never filled."""


def read_scores(suggestions: pa.Table, taxonomy: Taxonomy) -> StoredScores:
    """Read the scores of a shard's suggestions.

    They are those of the decision rule, except that nothing has a score if the photos disagree on any step.

    Args:
        suggestions: as `serving.backfill.output` writes them.
        taxonomy: that of the model.

    Raises:
        BackfillError: an earlier version wrote them, without all columns.
    """
    if missing := [name for name in _COLUMNS if name not in suggestions.column_names]:
        raise BackfillError(
            f"the suggestions have no column {missing[0]!r}, since an earlier version wrote them; "
            "`backfill run --overwrite` writes them again"
        )
    table = suggestions.combine_chunks()
    is_fillable = pa.compute.equal(table["result"], CLASSIFIED)
    for name in ("out_of_scope", "photos_disagree"):
        is_fillable = pa.compute.and_(is_fillable, pa.compute.invert(pa.compute.fill_null(table[name], True)))
    fillable = is_fillable.to_numpy()
    nodes, probabilities = _read_paths(table["category_path"], taxonomy)
    allowed = fillable[:, None] & (nodes >= 0) & taxonomy.fillable[nodes]
    categories = np.minimum.accumulate(np.where(allowed, probabilities, -np.inf).astype(np.float32), axis=1)
    labels, brand_scores = _read_brands(table["brand"], taxonomy)
    brands = np.where(fillable & (labels >= 0), brand_scores, -np.inf).astype(np.float32)
    return StoredScores(nodes, categories, labels, brands)


def _read_paths(column: pa.ChunkedArray, taxonomy: Taxonomy) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(L, D) nodes, -1 beyond the end, and probabilities."""
    lengths = pa.compute.fill_null(pa.compute.list_value_length(column), 0).to_numpy()
    steps = pa.compute.list_flatten(column).combine_chunks()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    depths = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    nodes = np.full((len(lengths), taxonomy.max_depth), -1, dtype=np.int64)
    probabilities = np.zeros(nodes.shape, dtype=np.float32)
    ids = pa.array([category.id for category in taxonomy.categories])
    nodes[rows, depths] = pa.compute.index_in(pa.compute.struct_field(steps, "id"), ids).to_numpy()
    probabilities[rows, depths] = pa.compute.struct_field(steps, "probability").to_numpy()
    return nodes, probabilities


def _read_brands(column: pa.ChunkedArray, taxonomy: Taxonomy) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(L,) labels and probabilities."""
    kinds = pa.compute.struct_field(column, "kind")
    ids = pa.array([brand.id for brand in taxonomy.brands], pa.string())
    found = pa.compute.index_in(pa.compute.struct_field(column, "id"), ids)
    labels = pa.compute.fill_null(found, OTHER_BRAND - 1).to_numpy().astype(np.int64) + 1
    labels[pa.compute.fill_null(pa.compute.equal(kinds, "no_brand"), False).to_numpy()] = 0
    return labels, pa.compute.fill_null(pa.compute.struct_field(column, "probability"), 0.0).to_numpy()


def read_labels(urls: Sequence[str], taxonomy: Taxonomy) -> dict[str, ListingLabel]:
    """Return the labels by listing, for category and brand each that of the first photo that has one.

    Args:
        urls: of manifests, with the columns `category` or `brand`.
        taxonomy: that of the model; `out of scope` is a category too, and a brand may be unknown to it.

    Raises:
        ManifestError: a file cannot be read, or a category is unknown.
        BackfillError: listings that the model was trained on, or that were drawn among those that a threshold fills.
    """
    found: dict[str, ListingLabel] = {}
    for url in urls:
        manifest = Manifest.load(url)
        _refuse_easy_rows(manifest, url)
        labels = manifest.resolve_labels(taxonomy, other_brands=True, out_of_scope=True)
        ids = manifest.column("listing_id").to_pylist()
        for listing_id, node, brand in zip(ids, labels.category_nodes.tolist(), labels.brands.tolist(), strict=True):
            known = found.get(listing_id, ListingLabel(UNLABELLED, UNLABELLED))
            found[listing_id] = ListingLabel(
                node if known.category_node == UNLABELLED else known.category_node,
                brand if known.brand == UNLABELLED else known.brand,
            )
    return found


def _refuse_easy_rows(manifest: Manifest, url: str) -> None:
    counts = {entry["values"]: entry["counts"] for entry in manifest.column("split").value_counts().to_pylist()}
    for split, why in (
        ("train", "the model may have learned their labels by heart"),
        (PLANNED_SPLIT, "`calibrate-plan` drew them among those that a threshold fills"),
    ):
        if split in counts:
            raise BackfillError(
                f"{counts[split]} rows of {url} have split {split!r}: {why}, so that fewer of them are wrong than of "
                "the backfill's rows; leave them out, and label a random sample of its listings"
            )


def compare_with_labels(
    scores: StoredScores, listing_ids: Sequence[str], labels: Mapping[str, ListingLabel], taxonomy: Taxonomy
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return (L, D + 1) whether each field has a label and whether the suggestion is right; the brand is last.

    A step below the labelled category, an inner node, counts as wrong: perhaps it is right. Of a product that the
    taxonomy does not cover nothing is right.
    """
    unlabelled = ListingLabel(UNLABELLED, UNLABELLED)
    truth = np.array([labels.get(listing_id, unlabelled) for listing_id in listing_ids], dtype=np.int64).reshape(-1, 2)
    paths = np.full(scores.nodes.shape, -1, dtype=np.int64)
    for row in np.flatnonzero(truth[:, 0] >= 0).tolist():
        lineage = taxonomy.get_lineage(taxonomy.categories[truth[row, 0]].id)
        paths[row, : len(lineage)] = [taxonomy.node_index[category.id] for category in lineage]
    out_of_scope = truth[:, :1] == OUT_OF_SCOPE
    known = np.repeat((truth != UNLABELLED) | out_of_scope, [scores.nodes.shape[1], 1], axis=1)
    right_steps = (scores.nodes == paths) & (paths >= 0)
    right_brands = (scores.brand_labels == truth[:, 1]) & (scores.brand_labels >= 0) & ~out_of_scope[:, 0]
    return known, np.column_stack([right_steps, right_brands]) & known
