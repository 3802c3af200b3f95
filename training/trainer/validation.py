"""Accuracy on the val split after every epoch, the choice of weights by it, and the check of val's labels."""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.evaluation.ground_truth import build_ground_truth
from training.inference.features import load_features
from training.trainer.distributed import Ranks
from training.trainer.loading.dataloader import Batch, create_evaluation_batches
from training.trainer.train_step import TrainStep
from vision.errors import ManifestError
from vision.images import Preprocessing
from vision.manifest import Labels, Manifest
from vision.model import Outputs
from vision.runtime.progress import Progress
from vision.taxonomy import Taxonomy

__all__ = ["Validation", "WeightChoice", "require_trained_labels"]

_log = logging.getLogger(__name__)

_Inferred = tuple[npt.NDArray[np.int64], Outputs, int]
"""The usable rows of a batch, their outputs, and the number of rows that cannot be used."""


class Validation:
    """Accuracy of the averaged weights on val, over photos labelled with a leaf; every rank evaluates a part of
    them."""

    def __init__(self, val: Manifest, taxonomy: Taxonomy, *, input_px: int, num_workers: int, ranks: Ranks) -> None:
        self.manifest, self._ranks = val, ranks
        self._labels = val.resolve_labels(taxonomy, out_of_scope=True)
        self._leaves = build_ground_truth(self._labels, taxonomy).leaves
        self._preprocessing = Preprocessing(input_px=input_px)
        self._num_workers = num_workers

    def evaluate(
        self, train_step: TrainStep, features: Path | None = None, *, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float | None] | None:
        """`val_leaf_top1` and `val_brand_top1` (None without labelled photos) and `val_bad_photos`, over all ranks.

        Args:
            train_step: with the weights to evaluate.
            features: folder with features of val's photos, where the backbone is still the one that made them.
            stop: whether this rank was asked to stop; looked at before every batch.

        Returns:
            None on every rank if one was asked to stop.
        """
        bounds = np.linspace(0, len(self.manifest), self._ranks.world_size + 1).astype(int)
        rows = range(bounds[self._ranks.rank], bounds[self._ranks.rank + 1])
        # Each rank has batch-norm statistics of its own during training.
        self._ranks.broadcast(train_step.ema.module.buffers())
        if features is None:
            batches = create_evaluation_batches(
                self.manifest,
                self._labels,
                self._preprocessing,
                batch_size=64,
                num_workers=self._num_workers,
                rows=rows,
            )
            num_rounds, found = len(batches), _infer(train_step, batches)
        else:
            num_rounds, found = 1, _infer_features(train_step, rows, features)
        counts = np.zeros(5)
        with Progress("val", len(rows), enabled=self._ranks.is_first and features is None) as progress:
            for _ in range(max(self._ranks.gather(num_rounds))):
                # Asked in every round on all ranks, so that all of them stop in the same one.
                if self._ranks.sum([float(stop())])[0]:
                    found.close()
                    return None
                for used, outputs, num_unusable in islice(found, 1):
                    counts += self._count(used, outputs, num_unusable)
                    progress.advance(len(used) + num_unusable)
        leaf_right, leaf_known, brand_right, brand_known, num_bad = self._ranks.sum(counts.tolist())
        return {
            "val_leaf_top1": leaf_right / leaf_known if leaf_known else None,
            "val_brand_top1": brand_right / brand_known if brand_known else None,
            "val_bad_photos": num_bad,
        }

    def _count(self, used: npt.NDArray[np.int64], outputs: Outputs, num_unusable: int) -> npt.NDArray[np.float64]:
        """(5,) leaves right and known, brands right and known, photos that cannot be used."""
        counts = [0.0, 0.0, 0.0, 0.0, float(num_unusable)]
        for at, logits, truth in (
            (0, outputs.category_logits, self._leaves[used]),
            (2, outputs.brand_logits, self._labels.brands[used]),
        ):
            known = truth >= 0
            counts[at] = float((logits.argmax(dim=1).cpu().numpy() == truth)[known].sum())
            counts[at + 1] = float(known.sum())
        return np.array(counts)


def _infer(train_step: TrainStep, batches: Iterable[Batch]) -> Generator[_Inferred]:
    for batch in batches:
        usable = torch.tensor([not problem for problem in batch.problems])
        for problem in filter(None, batch.problems):
            _log.warning("val photo left out: %s", problem)
        outputs = train_step.infer_averaged(batch.photos_nhwc[usable])
        yield batch.rows[usable].numpy(), outputs, int((~usable).sum())


def _infer_features(train_step: TrainStep, rows: range, folder: Path) -> Generator[_Inferred]:
    features = load_features(folder)
    mine = np.flatnonzero((features.rows >= rows.start) & (features.rows < rows.stop))
    values = torch.from_numpy(features.values[mine].copy())
    yield features.rows[mine], train_step.infer_averaged(values, on_features=True), len(rows) - len(mine)


class WeightChoice:
    """The averaged weights that val judged best so far, and how long ago that was."""

    def __init__(self, patience: int = 0) -> None:
        """Args:
        patience: the run ends after so many epochs without a better one; 0 never.
        """
        self._patience = patience
        self.score: float | None = None
        self.epoch = 0
        """The epoch that gave them, counted from 1; 0 before the first."""
        self.tensors: dict[str, torch.Tensor] = {}

    def judge(self, epoch: int, record: Mapping[str, float | None], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the weights over if no epoch before was better. Of equals, the later one has learnt for longer.

        Args:
            epoch: counted from 1.
            record: of `Validation.evaluate`.
            tensors: the averaged weights after it.
        """
        leaf, brand = record["val_leaf_top1"], record["val_brand_top1"]
        score = leaf if leaf is not None else brand
        if self.score is None or (score is not None and score >= self.score):
            self.score, self.epoch = score, epoch
            self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def ends_run(self, num_epochs: float) -> bool:
        """Whether the run has waited long enough for a better epoch; only ever true at the end of an epoch.

        Args:
            num_epochs: done so far, with the fraction of the one under way.
        """
        if not num_epochs.is_integer() or not 0 < self._patience <= num_epochs - self.epoch:
            return False
        _log.info("no epoch since epoch %d was better on val: the run ends", self.epoch)
        return True

    def export_state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"score": self.score, "epoch": self.epoch}

    def export_tensors(self) -> dict[str, torch.Tensor]:
        """`best.*` for a checkpoint."""
        return {f"best.{name}": tensor for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what the two gave; `tensors` may hold others."""
        self.score, self.epoch = state["score"], state["epoch"]
        self.tensors = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}


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
