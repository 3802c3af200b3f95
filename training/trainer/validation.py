"""Accuracy on the val split during a run, and the check that train has every label of val."""

import logging

import numpy as np
import torch

from training.evaluation.ground_truth import build_ground_truth
from training.trainer.distributed import Ranks
from training.trainer.loading.dataloader import create_evaluation_batches
from training.trainer.train_step import TrainStep
from vision.errors import ManifestError
from vision.images import Preprocessing
from vision.manifest import Labels, Manifest
from vision.taxonomy import Taxonomy

__all__ = ["Validation", "require_trained_labels"]

_log = logging.getLogger(__name__)


class Validation:
    """Accuracy of the averaged weights on val, over photos labelled with a leaf; every rank evaluates a part of
    them."""

    def __init__(self, val: Manifest, taxonomy: Taxonomy, *, input_px: int, num_workers: int, ranks: Ranks) -> None:
        self._val, self._ranks = val, ranks
        self._labels = val.resolve_labels(taxonomy)
        self._leaves = build_ground_truth(self._labels, taxonomy).leaves
        self._preprocessing = Preprocessing(input_px=input_px)
        self._num_workers = num_workers

    def evaluate(self, train_step: TrainStep) -> dict[str, float | None]:
        """`val_leaf_top1` and `val_brand_top1` (None without labelled photos) and `val_bad_photos`, over all ranks."""
        bounds = np.linspace(0, len(self._val), self._ranks.world_size + 1).astype(int)
        batches = create_evaluation_batches(
            self._val,
            self._labels,
            self._preprocessing,
            batch_size=64,
            num_workers=self._num_workers,
            rows=range(bounds[self._ranks.rank], bounds[self._ranks.rank + 1]),
        )
        # Each rank has batch-norm statistics of its own during training.
        self._ranks.broadcast(train_step.ema.module.buffers())
        counts = np.zeros(5)
        for batch in batches:
            outputs = train_step.infer_averaged(batch.photos_nhwc)
            leaves = torch.from_numpy(self._leaves[batch.rows.numpy()])
            leaves[batch.category_nodes < 0] = -1
            for at, logits, truth in ((0, outputs.category_logits, leaves), (2, outputs.brand_logits, batch.brands)):
                known = truth >= 0
                counts[at] += float((logits.argmax(dim=1).cpu() == truth)[known].sum())
                counts[at + 1] += float(known.sum())
            for problem in filter(None, batch.problems):
                counts[4] += 1
                _log.warning("val photo left out: %s", problem)
        leaf_right, leaf_known, brand_right, brand_known, num_bad = self._ranks.sum(counts.tolist())
        return {
            "val_leaf_top1": leaf_right / leaf_known if leaf_known else None,
            "val_brand_top1": brand_right / brand_known if brand_known else None,
            "val_bad_photos": num_bad,
        }


def require_trained_labels(train: Labels, val: Labels, taxonomy: Taxonomy) -> None:
    """Refuse a val split with labels that the train split lacks.

    Raises:
        ManifestError: names each of these labels.
    """
    problems = []
    train_leaves, val_leaves = (build_ground_truth(labels, taxonomy).leaves for labels in (train, val))
    for kind, names, in_train, in_val in (
        ("category", taxonomy.leaf_ids, train_leaves, val_leaves),
        ("brand", taxonomy.brand_labels, train.brands, val.brands),
    ):
        for label in np.setdiff1d(in_val[in_val >= 0], in_train):
            problems.append(f"{kind} {names[label]!r}: {(in_val == label).sum()} val photos, none in train")
    if problems:
        raise ManifestError(
            "the val split has labels that no train photo has; make another split (`listing-vision data split`), or "
            "leave these labels empty:",
            problems,
        )
