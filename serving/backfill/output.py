"""The Parquet that a backfill writes: a row a listing, a row a photo that could not be used."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from serving.backfill.job import SCHEMA_VERSION, Job
from serving.backfill.plan import ShardPhotos
from vision.bundle import Bundle
from vision.decision import compute_leaf_probabilities, compute_prefilled, predict_listings
from vision.engine import Logits
from vision.taxonomy import OTHER_BRAND

__all__ = [
    "CLASSIFIED",
    "NO_USABLE_PHOTO",
    "Failure",
    "ShardTables",
    "build_tables",
    "dead_letter_schema",
    "decide_shard",
    "suggestions_schema",
    "to_parquet",
]

CLASSIFIED = "classified"
NO_USABLE_PHOTO = "no_usable_photo"

_STEP = pa.struct([("id", pa.string()), ("name", pa.string()), ("probability", pa.float32()), ("filled", pa.bool_())])
_BRAND = pa.struct(
    [
        ("kind", pa.string()),
        ("id", pa.string()),
        ("name", pa.string()),
        ("probability", pa.float32()),
        ("filled", pa.bool_()),
    ]
)
_PHOTO_ERROR = pa.struct([("photo", pa.string()), ("reason", pa.string()), ("message", pa.string())])
_ALTERNATIVE = pa.struct([("id", pa.string()), ("probability", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A photo that could not be used."""

    reason: str
    """Stable: of a PhotoError, or `PHOTO_NOT_FOUND`, `PHOTO_READ_FAILED`."""
    message: str


@dataclass(frozen=True, kw_only=True)
class ShardTables:
    """What one shard comes to."""

    suggestions: pa.Table
    dead_letters: pa.Table

    @property
    def results(self) -> Mapping[str, int]:
        return dict(Counter(self.suggestions["result"].to_pylist()))

    @property
    def errors(self) -> Mapping[str, int]:
        return dict(Counter(self.dead_letters["reason"].to_pylist()))


def suggestions_schema(job: Job, embedding_size: int) -> pa.Schema:
    fields: list[tuple[str, pa.DataType]] = [
        ("listing_id", pa.string()),
        # `classified`, or `no_usable_photo`: then all that would be an answer is null.
        ("result", pa.string()),
        # The likeliest leaf.
        ("category_id", pa.string()),
        # From the root to that leaf.
        ("category_path", pa.list_(_STEP)),
        # The deepest category that is sure enough to be filled in; null: none is.
        ("filled_category_id", pa.string()),
        # kind: `brand`, `no_brand`, or `unknown`, none that the taxonomy knows.
        ("brand", _BRAND),
        ("num_photos", pa.int32()),
        ("photo_errors", pa.list_(_PHOTO_ERROR)),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("taxonomy_version", pa.string()),
        ("calibration_version", pa.string()),
    ]
    if job.top_k:
        fields.append(("alternatives", pa.list_(_ALTERNATIVE)))
    if job.embedding:
        fields.append(("embedding", pa.list_(pa.float32(), embedding_size)))
    return pa.schema(fields, metadata=_metadata(job))


def dead_letter_schema(job: Job) -> pa.Schema:
    names = ("listing_id", "photo", "reason", "message")
    return pa.schema([(name, pa.string()) for name in names], metadata=_metadata(job))


def to_parquet(table: pa.Table) -> bytes:
    """As Parquet; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def decide_shard(
    job: Job, bundle: Bundle, shard: ShardPhotos, logits: Logits, failures: Mapping[int, Failure]
) -> ShardTables:
    """Fuse the photos of each listing and decide, as the gateway does.

    Args:
        bundle: as it may be used with what computed the logits.
        logits: of the photos without failure, in their order.
        failures: by photo.
    """
    usable = np.setdiff1d(np.arange(len(shard.photos)), list(failures))
    answered, groups = np.unique(shard.groups[usable], return_inverse=True)
    predictions = _build_suggestions(job, bundle, logits, groups) if len(usable) else []
    by_listing = dict(zip(answered.tolist(), predictions, strict=True))
    return build_tables(job, shard, by_listing, failures, embedding_size=bundle.info.embedding_size)


def build_tables(
    job: Job,
    shard: ShardPhotos,
    suggestions: Mapping[int, dict[str, Any]],
    failures: Mapping[int, Failure],
    *,
    embedding_size: int = 0,
) -> ShardTables:
    """The tables of a shard.

    Args:
        suggestions: the columns of the suggestion, by listing; a listing without has no usable photo.
        failures: by photo.
    """
    errors: list[list[dict[str, str]]] = [[] for _ in shard.listing_ids]
    letters = []
    for photo in sorted(failures):
        failure, listing = failures[photo], int(shard.groups[photo])
        error = {"photo": shard.photos[photo], "reason": failure.reason, "message": failure.message}
        errors[listing].append(error)
        letters.append({"listing_id": shard.listing_ids[listing], **error})
    versions = {
        "model_name": job.model.name,
        "model_version": job.model.version,
        "taxonomy_version": job.model.taxonomy,
        "calibration_version": job.model.calibration,
    }
    num_photos = np.bincount(shard.groups, minlength=len(shard.listing_ids)).tolist()
    rows = [
        {
            "listing_id": listing_id,
            "result": CLASSIFIED if number in suggestions else NO_USABLE_PHOTO,
            "num_photos": num_photos[number],
            "photo_errors": errors[number],
            **versions,
            **suggestions.get(number, {}),
        }
        for number, listing_id in enumerate(shard.listing_ids)
    ]
    return ShardTables(
        suggestions=pa.Table.from_pylist(rows, schema=suggestions_schema(job, embedding_size)),
        dead_letters=pa.Table.from_pylist(letters, schema=dead_letter_schema(job)),
    )


def _build_suggestions(job: Job, bundle: Bundle, logits: Logits, groups: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    taxonomy, calibration = bundle.taxonomy, bundle.calibration
    predictions = predict_listings(logits.category, logits.brand, groups, taxonomy=taxonomy, calibration=calibration)
    filled = compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration)
    categories = taxonomy.categories
    rows: list[dict[str, Any]] = []
    for nodes, scores, fill, label, score in zip(
        predictions.paths.nodes.tolist(),
        predictions.paths.scores.tolist(),
        filled.tolist(),
        predictions.brands.labels.tolist(),
        predictions.brands.scores.tolist(),
        strict=True,
    ):
        path = [
            {"id": categories[node].id, "name": categories[node].name, "probability": score_here, "filled": filled_here}
            for node, score_here, filled_here in zip(nodes, scores, fill[:-1], strict=True)
            if node >= 0
        ]
        brand = taxonomy.brands[label - 1] if label > 0 else None
        rows.append(
            {
                "category_id": path[-1]["id"],
                "category_path": path,
                "filled_category_id": next((step["id"] for step in reversed(path) if step["filled"]), None),
                "brand": {
                    "kind": "unknown" if label == OTHER_BRAND else "brand" if brand else "no_brand",
                    "id": brand.id if brand else None,
                    "name": brand.name if brand else None,
                    "probability": score,
                    "filled": fill[-1],
                },
            }
        )
    if job.top_k:
        leaves = compute_leaf_probabilities(logits.category, groups, calibration, taxonomy)
        best = np.argsort(-leaves, axis=1, kind="stable")[:, : job.top_k]
        for row, some, probabilities in zip(rows, best.tolist(), leaves, strict=True):
            row["alternatives"] = [
                {"id": taxonomy.leaf_ids[leaf], "probability": float(probabilities[leaf])} for leaf in some
            ]
    if job.embedding:
        sums = np.zeros((len(rows), logits.embedding.shape[1]))
        np.add.at(sums, groups, logits.embedding)
        means = sums / np.bincount(groups)[:, None]
        for row, mean in zip(rows, means.astype(np.float32), strict=True):
            row["embedding"] = mean
    return rows


def _metadata(job: Job) -> dict[str, str]:
    return {"listing_vision.schema_version": str(SCHEMA_VERSION), "listing_vision.model_version": job.model.version}
