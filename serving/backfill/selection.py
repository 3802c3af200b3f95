"""The second pass of a backfill: fill its rows with an expected guarantee, given labels of some of its listings.

The guarantee is weaker than a bundle's: the share of wrong rows among the filled ones of this job is at most α on
average over draws of labelled listings and jobs. It needs the scores of all rows, so it comes after the first pass.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from serving.backfill.conformal_selection import FieldScores, FieldSelection, select_depths, select_field
from serving.backfill.job import LOCK_PATH, SCHEMA_VERSION, Job, ModelVersions, read_job
from serving.backfill.ledger import Entry, File, Ledger
from serving.backfill.output import to_parquet
from serving.backfill.plan import hash_manifest, list_manifest_files
from serving.backfill.run import SUCCESS_PATH, write_success_file
from serving.backfill.shutdown import HOW_TO_RESUME, GracefulShutdown, Interrupted
from serving.backfill.stored_scores import (
    ListingLabel,
    StoredScores,
    compare_with_labels,
    read_labels,
    read_scores,
)
from serving.errors import BackfillError
from serving.storage import Store
from vision.bundle import Bundle
from vision.calibration import BRAND_FIELD, get_field_name
from vision.manifest import UNLABELLED
from vision.taxonomy import Taxonomy

__all__ = ["NATURE", "SELECTION_PATH", "SelectionRequest", "SelectionSummary", "select"]

SELECTION_PATH = "_job/selection.json"
NATURE = (
    "expected, not certified: the share of wrong values among the filled ones of this job is at most alpha on average"
)


@dataclass(frozen=True, kw_only=True)
class SelectionRequest:
    labels: str
    """URL of a manifest with labels of some of the job's listings."""
    alpha_category: float | None = 0.05
    """Highest expected share of wrong categories at each depth; None: no category is filled."""
    alpha_brand: float | None = 0.02
    """The same for the brand."""

    def __post_init__(self) -> None:
        for name in ("alpha_category", "alpha_brand"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise BackfillError(f"{name} is {value}; give a share between 0 and 1, such as 0.05")


@dataclass(frozen=True, kw_only=True)
class SelectionSummary:
    alphas: Mapping[str, float]
    """By field, from the roots down, the brand last."""
    fields: Mapping[str, FieldSelection]

    def __str__(self) -> str:
        lines = [NATURE, "this assumes that labelled and other listings are alike, as in a random sample of the job:"]
        for name, field in self.fields.items():
            alpha = self.alphas[name]
            line = f"{name:<20}{field.num_filled:>10} of {field.num_rows} rows filled, alpha {alpha:.3g} on average"
            if field.threshold is None:
                line += f"; {field.num_labelled} labelled listings allow no more"
                if (num_required := int(np.ceil(1 / alpha - 1 - 1e-9))) > field.num_labelled:
                    line += f", at least {num_required} are needed"
            else:
                line += f", from {field.threshold:.4f} on; {field.num_labelled} labelled listings"
            lines.append(line)
        return "\n".join(lines)


def select(
    source: Store,
    target: Store,
    bundle: Bundle,
    request: SelectionRequest,
    *,
    shutdown: GracefulShutdown,
    notify: Callable[[str], None] = lambda _: None,
) -> SelectionSummary:
    """Write the suggestions of a finished backfill again, with columns for what the expected guarantee fills.

    A run that was stopped or killed resumes; the caller holds the target's lock.

    Args:
        source: output of the backfill.
        target: for the new tables.
        bundle: the model of the backfill.
        request: labels and shares.

    Raises:
        BackfillError: the backfill is not finished, is another model's, or its files have changed; labels are missing
            or of listings that it lacks; the target holds something else.
        ManifestError: the labels cannot be read.
        Interrupted: a stop was requested.
    """
    job = _read_finished_job(source, bundle)
    urls = list_manifest_files(request.labels)
    labels = read_labels(urls, bundle.taxonomy)
    alphas = _list_alphas(request, labels, bundle.taxonomy)
    summary = _select_fields(source, labels, alphas, bundle.taxonomy, request.labels)
    identity = {
        "schema_version": SCHEMA_VERSION,
        "guarantee": NATURE,
        "source": source.url,
        "source_success_sha256": source.sha256(SUCCESS_PATH),
        "labels_sha256": hash_manifest(urls),
        "fields": {name: {"alpha": alphas[name], **asdict(field)} for name, field in summary.fields.items()},
    }
    _require_same_selection(target, identity)
    target.write_json(SELECTION_PATH, identity)
    ledger = Ledger(target)
    ledger.recover()
    done = {entry.shard for entry in ledger.complete_entries()}
    remaining = [entry for entry in Ledger(source).entries() if entry.shard not in done]
    if done and remaining:
        notify(f"resuming: {len(done)} of {job.num_shards} shards are done")
    for entry in shutdown.take_until_stopped(remaining):
        table = _fill(_read_suggestions(source, entry), labels, summary, bundle.taxonomy)
        data = to_parquet(table)
        file = replace(entry.suggestions, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
        ledger.commit(replace(entry, suggestions=file, dead_letters=None), {file.path: data})
    if shutdown.stop_requested.is_set():
        raise Interrupted(HOW_TO_RESUME)
    write_success_file(target, job)
    return summary


def _read_finished_job(source: Store, bundle: Bundle) -> Job:
    job = read_job(source)
    if not source.exists(SUCCESS_PATH):
        raise BackfillError(
            f"the backfill in {source.url} is not finished, and a selection needs the scores of all its rows; "
            "finish it with `backfill run`"
        )
    wanted = ModelVersions.from_bundle(bundle, job.model.backend)
    for name in ("name", "version", "taxonomy"):
        here, there = getattr(wanted, name), getattr(job.model, name)
        if here != there:
            raise BackfillError(f"{source.url} holds suggestions of another model: {name} {there}, --model {here}")
    return job


def _list_alphas(request: SelectionRequest, labels: Mapping[str, ListingLabel], taxonomy: Taxonomy) -> dict[str, float]:
    """Return the alpha of each field to select. Raises BackfillError: a field has no label, or none is left."""
    alphas: dict[str, float] = {}
    if request.alpha_category is not None:
        _require_labels(request.labels, "category", [label.category_node for label in labels.values()])
        depths = (np.flatnonzero(taxonomy.decides_at_depth) + 1).tolist()
        alphas = dict.fromkeys(map(get_field_name, depths), request.alpha_category)
    if request.alpha_brand is not None and taxonomy.brands:
        _require_labels(request.labels, "brand", [label.brand for label in labels.values()])
        alphas[BRAND_FIELD] = request.alpha_brand
    if not alphas:
        raise BackfillError("there is no field to select; the taxonomy decides none of those that were asked for")
    return alphas


def _require_labels(url: str, column: str, values: Sequence[int]) -> None:
    if all(value == UNLABELLED for value in values):
        raise BackfillError(
            f"no row of {url} has a label in column {column!r}; add labels, or leave the field out with --no-{column}"
        )


def _select_fields(
    source: Store,
    labels: Mapping[str, ListingLabel],
    alphas: Mapping[str, float],
    taxonomy: Taxonomy,
    labels_url: str,
) -> SelectionSummary:
    columns = _list_columns(alphas, taxonomy)
    scores, known, right = [], [], []
    missing = set(labels)
    for entry in Ledger(source).entries():
        table = _read_suggestions(source, entry)
        ids = table["listing_id"].to_pylist()
        stored = read_scores(table, taxonomy)
        is_known, is_right = compare_with_labels(stored, ids, labels, taxonomy)
        scores.append(_stack(stored)[:, columns])
        known.append(is_known[:, columns])
        right.append(is_right[:, columns])
        missing.difference_update(ids)
    if missing:
        raise BackfillError(
            f"{len(missing)} of {len(labels)} listings of {labels_url} are not in the backfill {source.url}, such as "
            f"{min(missing)!r}; take labels of a random sample of its listings"
        )
    fields = _split_fields(np.concatenate(scores), np.concatenate(known), np.concatenate(right))
    by_name = dict(zip(alphas, fields, strict=True))
    brand = by_name.pop(BRAND_FIELD, None)
    selected: dict[str, FieldSelection] = {}
    if by_name:
        depths = select_depths(list(by_name.values()), alpha=alphas[next(iter(by_name))])
        selected = dict(zip(by_name, depths, strict=True))
    if brand is not None:
        selected[BRAND_FIELD] = select_field(brand, alpha=alphas[BRAND_FIELD])
    return SelectionSummary(alphas=alphas, fields=selected)


def _split_fields(
    scores: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]
) -> Iterator[FieldScores]:
    """Split (M, F) arrays, F fields, into the labelled rows and the others of each field."""
    for column, is_known, is_right in zip(scores.T, known.T, right.T, strict=True):
        yield FieldScores(labelled=column[is_known], wrong=~is_right[is_known], rows=column[~is_known])


def _list_columns(names: Mapping[str, object], taxonomy: Taxonomy) -> list[int]:
    """Return the place of each field in `_stack`."""
    by_name = {get_field_name(depth + 1): depth for depth in range(taxonomy.max_depth)}
    return [taxonomy.max_depth if name == BRAND_FIELD else by_name[name] for name in names]


def _stack(stored: StoredScores) -> npt.NDArray[np.float32]:
    """(L, D + 1) scores, the brand's last."""
    return np.column_stack([stored.categories, stored.brands])


def _fill(
    suggestions: pa.Table, labels: Mapping[str, ListingLabel], summary: SelectionSummary, taxonomy: Taxonomy
) -> pa.Table:
    """Append the columns of what is filled; a labelled row, whose truth is known, is not."""
    stored = read_scores(suggestions, taxonomy)
    known, _ = compare_with_labels(stored, suggestions["listing_id"].to_pylist(), labels, taxonomy)
    thresholds = np.full(taxonomy.max_depth + 1, np.inf)
    for column, field in zip(_list_columns(summary.fields, taxonomy), summary.fields.values(), strict=True):
        thresholds[column] = np.inf if field.threshold is None else field.threshold
    passes = (_stack(stored) >= thresholds) & ~known
    # Depths that have nothing to decide have no selection.
    steps = np.logical_and.accumulate(passes[:, :-1] | ~taxonomy.decides_at_depth, axis=1)
    depths = np.arange(1, taxonomy.max_depth + 1) * taxonomy.decides_at_depth
    deepest = np.where(steps, depths, 0).max(axis=1)
    nodes = stored.nodes[np.arange(len(deepest)), np.maximum(deepest - 1, 0)].tolist()
    ids = [taxonomy.categories[node].id if depth else None for node, depth in zip(nodes, deepest, strict=True)]
    alphas: dict[str, Any] = {f"listing_vision.expected_alpha.{name}": f"{a}" for name, a in summary.alphas.items()}
    return (
        suggestions.append_column("expected_category_id", pa.array(ids, pa.string()))
        .append_column("expected_brand_filled", pa.array(passes[:, -1]))
        .replace_schema_metadata({**suggestions.schema.metadata, "listing_vision.expected_guarantee": NATURE, **alphas})
    )


def _read_suggestions(source: Store, entry: Entry) -> pa.Table:
    """Raises BackfillError: the file is not the one of the ledger."""
    file: File = entry.suggestions
    data = source.read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise BackfillError(
            f"{source.full_path(file.path)}: its checksum differs from the ledger; see `backfill verify`"
        )
    return pyarrow.parquet.read_table(io.BytesIO(data))


def _require_same_selection(target: Store, identity: Mapping[str, Any]) -> None:
    """Raise BackfillError where the folder holds another selection, or anything else."""
    if target.exists(SELECTION_PATH):
        found = target.read_json(SELECTION_PATH)
        if differing := [name for name, value in identity.items() if found.get(name) != value]:
            raise BackfillError(
                f"{target.url} holds another selection, with another {', '.join(differing)}; give another --output"
            )
    elif foreign := [path for path in target.list_files("") if path != LOCK_PATH]:
        raise BackfillError(f"--output {target.url} holds other files, such as {foreign[0]}; give an empty folder")
