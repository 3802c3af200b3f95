"""The Parquet tables of a backfill: suggestions, a row per listing, and dead letters, a row per unusable photo."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from serving.backfill.job import SCHEMA_VERSION, Job
from serving.backfill.plan import ShardPhotos
from vision.bundle import Bundle
from vision.decision import compute_prefilled
from vision.engine import Logits
from vision.feeders.photo_reader import PhotoFailure
from vision.prediction.fusion import compute_leaf_probabilities
from vision.prediction.listings import predict_listings
from vision.suggestion import is_brand_offered
from vision.taxonomy import OTHER_BRAND, Taxonomy

__all__ = [
    "CLASSIFIED",
    "NO_USABLE_PHOTO",
    "ShardTables",
    "build_suggestion",
    "build_tables",
    "dead_letter_schema",
    "decide_shard",
    "merge_tables",
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
class ShardTables:
    """The two tables of one shard."""

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
        # `classified`, or `no_usable_photo`: then the columns of the suggestion are null.
        ("result", pa.string()),
        # The likeliest leaf.
        ("category_id", pa.string()),
        # From the root to that leaf.
        ("category_path", pa.list_(_STEP)),
        # The deepest prefilled category; null: none.
        ("filled_category_id", pa.string()),
        # kind: `brand`, `no_brand`, or `unknown`: a brand that the taxonomy lacks.
        ("brand", _BRAND),
        # Whether the photos show nothing that the taxonomy covers; nothing is then prefilled.
        ("out_of_scope", pa.bool_()),
        ("photos_disagree", pa.bool_()),
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
    """Return the table as Parquet; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def decide_shard(
    job: Job, bundle: Bundle, shard: ShardPhotos, logits: Logits, failures: Mapping[int, PhotoFailure]
) -> ShardTables:
    """Return a shard's tables: fuse the photos of each listing and decide, as the gateway does.

    Args:
        bundle: for the backend that computed the logits.
        logits: those of the photos without failure, in their order.
        failures: by photo.
    """
    usable = np.setdiff1d(np.arange(len(shard.photos)), list(failures))
    listings, groups = np.unique(shard.groups[usable], return_inverse=True)
    rows = _build_suggestions(job, bundle, logits, groups) if len(usable) else []
    suggestions = dict(zip(listings.tolist(), rows, strict=True))
    return build_tables(job, shard, suggestions, failures, embedding_size=bundle.info.embedding_size)


def build_suggestion(
    steps: Iterable[tuple[str, str, float, bool]],
    brand: tuple[str, str | None, str | None, float, bool] | None,
    *,
    out_of_scope: bool,
    photos_disagree: bool,
) -> dict[str, Any]:
    """Return the columns of a suggestion, whoever has decided it.

    Args:
        steps: id, name, probability and whether it is prefilled, from the root to the likeliest leaf.
        brand: kind, id, name, probability and whether it is prefilled; None where the taxonomy has no brands.
        out_of_scope: whether the photos show nothing that the taxonomy covers.
        photos_disagree: whether they show different things.
    """
    path = [dict(zip(_STEP.names, step, strict=True)) for step in steps]
    return {
        "category_id": path[-1]["id"],
        "category_path": path,
        "filled_category_id": next((step["id"] for step in reversed(path) if step["filled"]), None),
        "brand": dict(zip(_BRAND.names, brand, strict=True)) if brand else None,
        "out_of_scope": out_of_scope,
        "photos_disagree": photos_disagree,
    }


def build_tables(
    job: Job,
    shard: ShardPhotos,
    suggestions: Mapping[int, dict[str, Any]],
    failures: Mapping[int, PhotoFailure],
    *,
    embedding_size: int = 0,
) -> ShardTables:
    """Return the tables of a shard.

    Args:
        suggestions: the columns of each suggestion, by listing; a listing without one has no usable photo.
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


def merge_tables(old: ShardTables, new: ShardTables, shard: ShardPhotos) -> ShardTables:
    """Return a shard's tables with the rows of some listings replaced, in the shard's order.

    A listing of which more photos fail than before, because of an outage, keeps its old rows.
    """
    failed_before = _count_photo_errors(old)
    replaced = {
        listing_id: row
        for row, (listing_id, failed) in enumerate(_count_photo_errors(new).items())
        if failed <= failed_before[listing_id]
    }
    taken = [
        old.suggestions.num_rows + replaced[id_] if id_ in replaced else row for row, id_ in enumerate(failed_before)
    ]
    letters = [letter for letter in old.dead_letters.to_pylist() if letter["listing_id"] not in replaced]
    letters += [letter for letter in new.dead_letters.to_pylist() if letter["listing_id"] in replaced]
    # In the shard's order, so that the same failures give the same file.
    photos = zip(shard.groups.tolist(), shard.photos, strict=True)
    place = {(shard.listing_ids[group], photo): at for at, (group, photo) in enumerate(photos)}
    letters.sort(key=lambda letter: place[letter["listing_id"], letter["photo"]])
    both = pa.concat_tables([old.suggestions, new.suggestions])
    return ShardTables(
        suggestions=both.take(pa.array(taken, pa.int64())),
        dead_letters=pa.Table.from_pylist(letters, schema=new.dead_letters.schema),
    )


def _count_photo_errors(tables: ShardTables) -> dict[str, int]:
    """Return the number of failed photos by listing, in the order of the rows."""
    ids, errors = (tables.suggestions[name].to_pylist() for name in ("listing_id", "photo_errors"))
    return {listing_id: len(failed) for listing_id, failed in zip(ids, errors, strict=True)}


def _build_suggestions(job: Job, bundle: Bundle, logits: Logits, groups: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    taxonomy, calibration = bundle.taxonomy, bundle.calibration
    predictions = predict_listings(
        logits.category, logits.brand, logits.scope, groups, taxonomy=taxonomy, calibration=calibration
    )
    filled = compute_prefilled(predictions, taxonomy=taxonomy, calibration=calibration)
    categories = taxonomy.categories
    rows = []
    disagrees = np.bincount(groups, weights=predictions.photos_disagree) > 0
    for nodes, scores, fill, label, score, in_scope, disagree in zip(
        predictions.paths.nodes.tolist(),
        predictions.paths.scores.tolist(),
        filled.tolist(),
        predictions.brands.labels.tolist(),
        predictions.brands.scores.tolist(),
        predictions.in_scope.tolist(),
        disagrees.tolist(),
        strict=True,
    ):
        steps = [
            (categories[node].id, categories[node].name, step_score, step_filled)
            for node, step_score, step_filled in zip(nodes, scores, fill[:-1], strict=True)
            if node >= 0
        ]
        brand = _describe_brand(taxonomy, label, score, filled=fill[-1]) if taxonomy.brands else None
        rows.append(build_suggestion(steps, brand, out_of_scope=not in_scope, photos_disagree=disagree))
    if job.top_k:
        used = np.flatnonzero(predictions.photos_used)
        leaves = compute_leaf_probabilities(logits.category[used], groups[used], calibration, taxonomy)
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


def _describe_brand(
    taxonomy: Taxonomy, label: int, probability: float, *, filled: bool
) -> tuple[str, str | None, str | None, float, bool]:
    """Kind, id, name, probability and whether it is prefilled."""
    if not is_brand_offered(label, probability, filled=filled):
        return "undetermined", None, None, 0.0, False
    if label <= 0:
        return "unknown" if label == OTHER_BRAND else "no_brand", None, None, probability, filled
    brand = taxonomy.brands[label - 1]
    return "brand", brand.id, brand.name, probability, filled


def _metadata(job: Job) -> dict[str, str]:
    return {"listing_vision.schema_version": str(SCHEMA_VERSION), "listing_vision.model_version": job.model.version}
