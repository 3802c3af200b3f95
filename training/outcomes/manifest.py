"""Training manifests from what sellers chose."""

from collections import Counter
from typing import Any, NamedTuple

from training.outcomes.tables import OutcomeTables
from vision.errors import ManifestError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

__all__ = ["OutcomeManifests", "build_outcome_manifests", "find_brand_id"]


class OutcomeManifests(NamedTuple):
    shown: Manifest
    """Listings whose sellers saw a suggestion and may have kept a wrong one: for training."""
    unseen: Manifest
    """Listings whose sellers did not see the category, or the brand: for evaluation, with the labels of what they did
    not see alone."""
    new_brands: dict[str, int]
    """Names that the taxonomy does not list, with the number of sellers who wrote each."""
    num_without_photos: int


def build_outcome_manifests(tables: OutcomeTables, photos: Manifest, taxonomy: Taxonomy) -> OutcomeManifests:
    """One row per photo, labelled with the last outcome of its listing.

    Args:
        tables: the suggestions and outcomes.
        photos: a table with `listing_id` and `photo`.
        taxonomy: the one of the outcomes.

    Raises:
        ManifestError: no listing with an outcome has a photo.
    """
    names: Counter[str] = Counter()
    labels = {row["listing_id"]: _label(row, taxonomy, names) for row in tables.load_choices()}
    hidden = {row["listing_id"] for row in tables.load_choices() if row["category_hidden"] or row["brand_hidden"]}
    columns = {name: photos.column(name).to_pylist() for name in ("listing_id", "photo")}
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    seen = set()
    for number, listing_id in enumerate(columns["listing_id"]):
        if listing_id in labels:
            seen.add(listing_id)
            row = {"listing_id": listing_id, "photo": photos.get_photo_url(number), **labels[listing_id]}
            rows[listing_id in hidden].append(row)
    if not seen:
        raise ManifestError("no listing with an outcome is in the table of photos; are its listing_id the same ones?")
    return OutcomeManifests(
        shown=Manifest.from_rows(rows[False], ""),
        unseen=Manifest.from_rows(rows[True], ""),
        new_brands=dict(names.most_common()),
        num_without_photos=len(labels) - len(seen),
    )


def _label(row: dict[str, Any], taxonomy: Taxonomy, names: "Counter[str]") -> dict[str, str]:
    brand = ""
    if row["brand_kind"] == "NO_BRAND":
        brand = taxonomy.brand_labels[0]
    elif row["brand_kind"] == "BRAND":
        brand = row["brand_id"]
    elif row["brand_kind"] == "OTHER":
        known = find_brand_id(row["brand_name"], taxonomy)
        brand = known or ""
        if known is None:
            names[row["brand_name"].strip()] += 1
    labels = {"category": row["category_id"] or "", "brand": brand}
    if row["category_hidden"] or row["brand_hidden"]:
        # What was seen may be a wrong suggestion that was kept, so it is no truth for an evaluation.
        return {field: label if row[f"{field}_hidden"] else "" for field, label in labels.items()}
    return labels


def find_brand_id(name: str, taxonomy: Taxonomy) -> str | None:
    """Return the id of the brand that a seller wrote by one of its names or aliases; None: the taxonomy lacks it."""
    wanted = name.strip().casefold()
    for brand in taxonomy.brands:
        if wanted in {text.casefold() for text in (brand.id, *brand.names.values(), *brand.aliases)}:
            return brand.id
    return None
