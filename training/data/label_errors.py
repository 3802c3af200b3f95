"""Photos whose label is probably wrong, by confident learning on what a frozen backbone sees.

Northcutt, Jiang, Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021), section 3.
"""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.evaluation.ground_truth import build_ground_truth
from training.inference.features import Features
from training.inference.linear_probe import compute_softmax_probabilities, fit_softmax
from vision.errors import ListingVisionError, ManifestError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

__all__ = [
    "FieldLabelErrors",
    "SuspectedLabel",
    "assign_folds",
    "compute_confident_thresholds",
    "compute_out_of_fold_probabilities",
    "find_confident_suspects",
    "find_suspects",
    "write_csv",
]

Field = Literal["category", "brand"]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

_L2 = 0.03
"""Set by trying 0.001 to 0.3 on real photos with labels changed at random: the middle of a flat stretch from 0.01 to
0.1, where smaller values only take longer to fit. Expect a good part of the mistakes in one pass, not all."""


@dataclass(frozen=True, kw_only=True)
class SuspectedLabel:
    """A label that probably does not fit its photo."""

    field: Field
    rank: int
    """1 is the most suspicious of its field."""
    row: int
    """Row of the manifest, counted from 1."""
    photo: str
    """Path or URL."""
    listing_id: str
    given: str
    """A category path or a brand name."""
    suggested: str
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True, kw_only=True)
class FieldLabelErrors:
    """The suspected labels of one field, and what could not be compared."""

    field: Field
    suspects: tuple[SuspectedLabel, ...]
    """Most suspicious first."""
    num_compared: int
    """Photos whose label was compared with predictions from the other listings."""
    accuracy: float
    """Share of the compared photos whose label is also the most likely; where it is low, expect false alarms."""
    num_unlabelled: int
    num_inner: int
    """Photos labelled with an inner node of the taxonomy, which is no mistake."""
    rare_classes: tuple[str, ...]
    """Labels with fewer listings than folds, too few to be compared or suggested."""
    num_rare: int
    """Photos with one of these labels."""
    examples: dict[str, tuple[str, ...]]
    """Suggested label to the photos that fit it best, from different listings and not suspected themselves."""


def find_suspects(
    manifest: Manifest, taxonomy: Taxonomy, features: Features, *, num_folds: int = 5
) -> tuple[FieldLabelErrors, FieldLabelErrors]:
    """Suspected category and brand labels.

    Args:
        features: of this manifest. Those of a model that was trained on these labels hide the mistakes that it
            memorised.

    Raises:
        ManifestError: labels unknown to the taxonomy, or neither field has two labels that can be compared.
        ListingVisionError: fewer than 2 folds.
    """
    if num_folds < 2:
        raise ListingVisionError(f"{num_folds} folds leave nothing to learn from; use at least 2")
    labels = manifest.resolve_labels(taxonomy, out_of_scope=True)
    truth = build_ground_truth(labels, taxonomy)
    inner = (labels.category_nodes >= 0) & (truth.leaves < 0)
    leaf_names = [taxonomy.format_path(leaf_id) for leaf_id in taxonomy.leaf_ids]
    found = (
        _find_field_label_errors("category", manifest, features, truth.leaves, inner, leaf_names, num_folds=num_folds),
        _find_field_label_errors(
            "brand", manifest, features, truth.brands, inner & False, taxonomy.brand_labels, num_folds=num_folds
        ),
    )
    if all(part.num_compared == 0 for part in found):
        raise ManifestError(
            f"no two categories and no two brands have {num_folds} listings each, so that no label can be compared; "
            "label more listings, or use fewer folds"
        )
    return found


def assign_folds(listing_ids: Sequence[str], labels: Ints, *, num_folds: int) -> Ints:
    """(N,) fold 0…num_folds-1 of each photo: one for all photos of a listing, whatever the order of the rows.

    Each label's listings are dealt to the folds in the order of the sha256 of their ids, so that a label of at least
    two listings is known to every model that judges it.
    """
    label_of: dict[str, int] = {}
    for listing_id, label in zip(listing_ids, labels.tolist(), strict=True):
        # A listing whose photos disagree is dealt once, with the smallest of its labels.
        label_of[listing_id] = min(label, label_of.get(listing_id, label))
    dealt: dict[int, int] = {}
    fold_of: dict[str, int] = {}
    for listing_id in sorted(label_of, key=lambda id_: hashlib.sha256(id_.encode()).digest()):
        # Labels start at different folds, lest the first get the odd listing of each.
        turn = dealt.setdefault(label_of[listing_id], label_of[listing_id])
        fold_of[listing_id] = turn % num_folds
        dealt[label_of[listing_id]] = turn + 1
    return np.array([fold_of[listing_id] for listing_id in listing_ids], dtype=np.int64)


def compute_out_of_fold_probabilities(
    features: Floats, labels: Ints, folds: Ints, num_classes: int, *, l2: float = _L2
) -> npt.NDArray[np.float32]:
    """(N, C) what softmax regression on the other folds says of each row."""
    probabilities = np.empty((len(labels), num_classes), np.float32)
    for fold in tqdm(np.unique(folds), unit="fold", disable=None):
        held_out = folds == fold
        weight, bias = fit_softmax(features[~held_out], labels[~held_out], num_classes, l2=l2)
        probabilities[held_out] = compute_softmax_probabilities(features[held_out], weight, bias)
    return probabilities


def compute_confident_thresholds(probabilities: Floats, labels: Ints) -> npt.NDArray[np.float64]:
    """(C,) mean probability of a class among the rows labelled with it (equation 2); infinite without such rows."""
    num_classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def find_confident_suspects(probabilities: Floats, labels: Ints) -> tuple[Ints, Ints]:
    """Suspected rows, most suspicious first, and the class that each is suspected to be.

    A row is suspected of the likeliest of the other classes that reach their threshold, if that is also likelier than
    the given one. The paper counts such rows off the diagonal of the confident joint (equation 1), and ranks by the
    normalised margin, the given class's probability less the other's (section 3.2).
    """
    rows = np.arange(len(labels))
    confident = np.where(probabilities >= compute_confident_thresholds(probabilities, labels), probabilities, -1.0)
    confident[rows, labels] = -1.0
    suggested = confident.argmax(axis=1)
    margins = probabilities[rows, labels] - confident[rows, suggested]
    suspected = np.flatnonzero((confident[rows, suggested] >= 0) & (margins < 0))
    ranked = suspected[np.argsort(margins[suspected], kind="stable")]
    return ranked, suggested[ranked]


def write_csv(found: Sequence[FieldLabelErrors], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(SuspectedLabel)])
        writer.writeheader()
        for part in found:
            for suspect in part.suspects:
                probabilities = {
                    name: f"{getattr(suspect, name):.4f}" for name in ("given_probability", "suggested_probability")
                }
                writer.writerow({**asdict(suspect), **probabilities})


def _find_field_label_errors(
    field: Field,
    manifest: Manifest,
    features: Features,
    labels: Ints,
    inner: npt.NDArray[np.bool_],
    names: Sequence[str],
    *,
    num_folds: int,
) -> FieldLabelErrors:
    """`labels` and `inner` are of all rows of the manifest."""
    labels, inner = labels[features.rows], inner[features.rows]
    listing_ids = np.array(manifest.column("listing_id").to_pylist(), dtype=object)[features.rows]
    num_listings = _count_listings(labels, listing_ids, len(names))
    rare = (num_listings > 0) & (num_listings < num_folds)
    of_rare = (labels >= 0) & rare[labels]
    at = np.flatnonzero((labels >= 0) & ~of_rare)
    given, ids, rows = labels[at], listing_ids[at], features.rows[at]
    if len(np.unique(given)) < 2:
        at, given, ids, rows = at[:0], given[:0], ids[:0], rows[:0]
    folds = assign_folds(list(ids), given, num_folds=num_folds)
    probabilities = compute_out_of_fold_probabilities(features.values[at], given, folds, len(names))
    ranked, suggested = find_confident_suspects(probabilities, given)
    suspects = tuple(
        SuspectedLabel(
            field=field,
            rank=rank,
            row=int(rows[i]) + 1,
            photo=manifest.get_photo_url(int(rows[i])),
            listing_id=str(ids[i]),
            given=names[int(given[i])],
            suggested=names[int(other)],
            given_probability=float(probabilities[i, given[i]]),
            suggested_probability=float(probabilities[i, other]),
        )
        for rank, (i, other) in enumerate(zip(ranked, suggested, strict=True), start=1)
    )
    trusted = np.setdiff1d(np.arange(len(given)), ranked)
    examples = {
        names[int(label)]: tuple(
            manifest.get_photo_url(int(rows[i]))
            for i in _pick_examples(trusted[given[trusted] == label], probabilities[:, label], ids)
        )
        for label in np.unique(suggested)
    }
    return FieldLabelErrors(
        field=field,
        suspects=suspects,
        num_compared=len(given),
        accuracy=float((probabilities.argmax(axis=1) == given).mean()) if len(given) else float("nan"),
        num_unlabelled=int(((labels < 0) & ~inner).sum()),
        num_inner=int(inner.sum()),
        rare_classes=tuple(names[int(label)] for label in np.flatnonzero(rare)),
        num_rare=int(of_rare.sum()),
        examples=examples,
    )


def _count_listings(labels: Ints, listing_ids: npt.NDArray[np.object_], num_classes: int) -> Ints:
    pairs = {(label, listing_id) for label, listing_id in zip(labels.tolist(), listing_ids, strict=True) if label >= 0}
    return np.bincount(np.array([label for label, _ in pairs], dtype=np.int64), minlength=num_classes)


def _pick_examples(rows: Ints, own: Floats, listing_ids: npt.NDArray[np.object_], *, num: int = 2) -> list[int]:
    best: dict[str, int] = {}
    for row in rows[np.argsort(-own[rows], kind="stable")]:
        best.setdefault(str(listing_ids[row]), int(row))
        if len(best) == num:
            break
    return list(best.values())
