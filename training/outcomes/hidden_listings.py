"""Listings that were hidden before the answer: what a rule can fill, and what their sellers chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.outcomes.manifest import find_brand_id
from training.outcomes.tables import OutcomeTables
from vision.bundle import Bundle
from vision.errors import ListingVisionError
from vision.manifest import UNLABELLED, Labels
from vision.prediction.listings import Brands, Paths
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = ["HiddenListings", "load_hidden_listings"]

# The last outcome in time counts, and the last suggestion before it, or before the waiting time is over. A seller who
# was shown any suggestion by then has not chosen freely: that outcome is not known.
_QUERY = """
    WITH mine AS (SELECT * FROM suggestions WHERE hidden AND rule_version = $1),
    begun AS (
        SELECT listing_id, min(time) AS first_time, min(time) + INTERVAL {hours} HOUR AS last_time
        FROM mine GROUP BY 1 HAVING epoch_us(min(time)) > $2 AND epoch_us(min(time)) <= $3
    ),
    chosen AS (
        SELECT o.*, row_number() OVER (PARTITION BY listing_id ORDER BY o.time DESC) AS place
        FROM outcomes o JOIN begun b USING (listing_id) WHERE o.time BETWEEN b.first_time AND b.last_time
    ),
    ended AS (
        SELECT b.listing_id, b.first_time, coalesce(o.time, b.last_time) AS end_time, o.category_id, o.brand_kind,
            o.brand_id, o.brand_name, o.category_treatment, o.brand_treatment
        FROM begun b LEFT JOIN (SELECT * FROM chosen WHERE place = 1) o USING (listing_id)
    ),
    shown AS (
        SELECT DISTINCT e.listing_id FROM ended e JOIN suggestions s USING (listing_id)
        WHERE s.time <= e.end_time AND s.hidden IS NOT TRUE
    )
    SELECT s.category_ids, s.category_probabilities, s.num_fillable, s.brand_kind, s.brand_id, s.brand_probability,
        s.brand_fillable, epoch_us(e.first_time) AS first_us,
        CASE WHEN {category} THEN e.category_id END AS chosen_category,
        CASE WHEN {brand} THEN e.brand_kind END AS chosen_brand_kind,
        e.brand_id AS chosen_brand, e.brand_name AS chosen_brand_name
    FROM ended e ASOF JOIN mine s ON e.listing_id = s.listing_id AND e.end_time >= s.time
    ORDER BY e.first_time, e.listing_id
"""
_UNSEEN = "e.{}_treatment IN ('HIDDEN', 'UNSPECIFIED') AND e.listing_id NOT IN (SELECT listing_id FROM shown)"


@dataclass(frozen=True, kw_only=True)
class HiddenListings:
    """N listings whose waiting time is over, in the order of their first suggestion."""

    first_us: npt.NDArray[np.int64]
    """(N,) time of the first suggestion, in microseconds since 1970."""
    paths: Paths
    brands: Brands
    labels: Labels
    """(N,) what the sellers chose; -1 where it is not known."""
    num_other: Mapping[str, int]
    """Hidden suggestions of other rules, by release; they are left out."""


def load_hidden_listings(
    tables: OutcomeTables, bundle: Bundle, *, wait_days: int, after_us: int, until_us: int
) -> HiddenListings:
    """Load the listings that the rule of a bundle classified hidden.

    Args:
        tables: suggestions and outcomes.
        bundle: whose `rule_version` counts.
        wait_days: days after the first suggestion in which an outcome counts.
        after_us: only listings whose first suggestion was made after that, in microseconds since 1970 …
        until_us: … and by then.

    Raises:
        ListingVisionError: no suggestion was hidden by its request, or none of this rule.
    """
    num_other = _count_others(tables, bundle.rule_version)
    query = _QUERY.format(hours=24 * wait_days, category=_UNSEEN.format("category"), brand=_UNSEEN.format("brand"))
    rows, taxonomy = tables.fetch_rows(query, [bundle.rule_version, after_us, until_us]), bundle.taxonomy
    return HiddenListings(
        first_us=np.array([row["first_us"] for row in rows], np.int64),
        paths=_build_paths(rows, taxonomy),
        brands=_build_brands(rows, taxonomy),
        labels=_build_labels(rows, taxonomy),
        num_other=num_other,
    )


def _count_others(tables: OutcomeTables, rule_version: str) -> dict[str, int]:
    counted = tables.fetch_rows(
        "SELECT release, coalesce(rule_version = $1, false) AS mine, count(*) AS num "
        "FROM suggestions WHERE hidden GROUP BY 1, 2 ORDER BY 1",
        [rule_version],
    )
    others = {row["release"]: row["num"] for row in counted if not row["mine"]}
    if not counted:
        raise ListingVisionError(
            "no suggestion was marked as hidden by its request: outcomes are evidence only for listings that were "
            "drawn and marked before the call (`hidden` of ClassifyListingRequest), not for those that are only "
            "reported as hidden afterwards"
        )
    if all(not row["mine"] for row in counted):
        named = ", ".join(f"{release} ({num})" for release, num in others.items())
        raise ListingVisionError(
            f"no hidden suggestion was made by the rule of this bundle, {rule_version}, but by others: {named}; give "
            "the bundle that was served, or what `calibrate --from-outcomes` made of it"
        )
    return others


def _build_paths(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> Paths:
    nodes = np.full((len(rows), taxonomy.max_depth), -1, np.int64)
    scores = np.zeros(nodes.shape)
    for number, row in enumerate(rows):
        depth = len(row["category_ids"])
        nodes[number, :depth] = [taxonomy.node_index[name] for name in row["category_ids"]]
        scores[number, :depth] = row["category_probabilities"]
    return Paths(nodes, scores, np.array([row["num_fillable"] for row in rows], np.int64))


def _build_brands(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> Brands:
    labels_by_id = _list_brand_labels(taxonomy)
    labels = [_find_brand_label(row["brand_kind"], row["brand_id"], labels_by_id) for row in rows]
    return Brands(
        np.array(labels, np.int64),
        np.array([row["brand_probability"] or 0.0 for row in rows], np.float64),
        np.array([row["brand_fillable"] for row in rows], bool),
    )


def _build_labels(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> Labels:
    # An id of another taxonomy says neither that the suggestion is right nor that it is wrong.
    nodes = [taxonomy.node_index.get(row["chosen_category"], UNLABELLED) for row in rows]
    brands, labels_by_id = [], _list_brand_labels(taxonomy)
    for row in rows:
        kind, brand_id = row["chosen_brand_kind"], row["chosen_brand"]
        if kind == "OTHER" and (known := find_brand_id(row["chosen_brand_name"], taxonomy)):
            kind, brand_id = "BRAND", known
        brands.append(_find_brand_label(kind, brand_id, labels_by_id))
    return Labels(category_nodes=np.array(nodes, np.int64), brands=np.array(brands, np.int64))


def _list_brand_labels(taxonomy: Taxonomy) -> dict[str, int]:
    return {brand.id: label for label, brand in enumerate(taxonomy.brands, start=1)}


def _find_brand_label(kind: str | None, brand_id: str | None, labels_by_id: Mapping[str, int]) -> int:
    if kind == "BRAND":
        return labels_by_id.get(brand_id or "", UNLABELLED)
    return {"NO_BRAND": 0, "OTHER": OTHER_BRAND}.get(kind or "", UNLABELLED)
