"""Files of suggestions and outcomes like those that gateways write."""

import pyarrow as pa
import pyarrow.parquet as pq

from serving.outcomes.records import SCHEMAS
from vision.calibration import Calibration, FieldGuarantee

DAY_US = 86_400_000_000


def create_suggestion(
    listing_id, day, *, version="old", path=("fruit", "apple", "gala"), filled=3, brand="acme", p=0.9, **more
):
    row = dict.fromkeys(SCHEMAS["suggestions"].names)
    return (
        row
        | {
            "time": int(day * DAY_US),
            "listing_id": listing_id,
            "model_version": version,
            "category_ids": list(path),
            "category_probabilities": [p] * len(path),
            "num_filled": filled,
            "brand_kind": "BRAND" if brand else "NO_BRAND",
            "brand_id": brand,
            "brand_probability": p,
            "brand_filled": False,
            "num_photos": 2,
            "num_unusable": 0,
            "photo_bytes": 1000,
        }
        | more
    )


def create_outcome(listing_id, day, category="gala", *, treatment="UNSPECIFIED", **more):
    row = dict.fromkeys(SCHEMAS["outcomes"].names)
    treatments = {"category_treatment": treatment, "brand_treatment": treatment}
    named = {"listing_id": listing_id, "category_id": category, "suggestion_id_status": "VALID"}
    return row | {"time": int(day * DAY_US)} | named | treatments | more


def create_shadow(listing_id, day, **more):
    row = create_suggestion(listing_id, day, version="shadow", **more) | {"answered_model_version": "old"}
    return {name: row[name] for name in SCHEMAS["shadows"].names}


def write_tables(folder, suggestions, outcomes, shadows=()):
    for table, rows in (("suggestions", suggestions), ("outcomes", outcomes), ("shadows", shadows)):
        if not rows:
            continue
        (folder / table / "2026-01-01").mkdir(parents=True)
        for part in (0, 1):  # files of two processes
            path = folder / table / "2026-01-01" / f"{part}.parquet"
            pq.write_table(pa.Table.from_pylist(rows[part::2], schema=SCHEMAS[table]), path)
    return str(folder)


def create_calibration(**thresholds):
    fields = tuple(
        FieldGuarantee(
            name=n,
            alpha=0.05,
            delta=0.01,
            threshold=t,
            num_listings=9,
            num_filled=9,
            num_errors=0,
            uncertified_reason="",
        )
        for n, t in thresholds.items()
    )
    return Calibration(fields=fields, certifies={})
