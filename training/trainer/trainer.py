"""The training run: steps, epochs and checkpoints, alone or as one of many ranks, from which a later run goes on."""

import json
import logging
import math
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import vision
from training.errors import LossNotFinite, RunError
from training.evaluation.ground_truth import build_ground_truth
from training.inference.features import extract_features
from training.recipe import Recipe
from training.run import Run, list_differences
from training.trainer.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from training.trainer.dataloader import Batch, evaluation_batches, training_batches
from training.trainer.distillation import Teacher
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from training.trainer.losses import NumLabelled
from training.trainer.progress import Progress, StepTimes
from training.trainer.sampler import ResumableBatchSampler
from training.trainer.train_step import StepResult, TrainStep
from vision.errors import ManifestError
from vision.images import Preprocessing
from vision.manifest import Labels, Manifest
from vision.taxonomy import Taxonomy

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)

EVALUATE_EVERY_EPOCHS = 4
_CHECKPOINT_FORMAT = 2


class _PendingStep(NamedTuple):
    """A step whose loss has not been looked at yet."""

    step: int
    result: StepResult
    rows: npt.NDArray[np.int64]


class Trainer:
    """Fine-tunes one classifier by a recipe. Build it on every rank, call `run()`; `interrupted` tells how it ended."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        manifest_url: str,
        manifest: Manifest,
        taxonomy: Taxonomy,
        run: Run,
        machine: Machine | None = None,
        ranks: Ranks | None = None,
        teacher: Path | None = None,
    ) -> None:
        """Args: teacher: bundle or finished run whose answers the recipe's `distillation_weight` is for."""
        self._recipe, self._run = recipe, run
        self._machine = machine or Machine()
        self._ranks = ranks or Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._manifest_url, self._manifest, self._taxonomy = manifest_url, manifest, taxonomy
        self._num_workers = self._machine.count_workers(self._ranks.device)
        self._train = manifest.where_split("train")
        self._train_labels = self._train.labels(taxonomy)
        self._val = manifest.where_split("val")
        self._val_labels = self._val.labels(taxonomy)
        self._val_leaves = build_ground_truth(self._val_labels, taxonomy).leaves
        require_trained_labels(self._train_labels, self._val_labels, taxonomy)
        taught_by = Teacher.load(teacher, taxonomy, self._ranks.device) if teacher else None
        self.train_step = TrainStep(
            recipe,
            taxonomy=taxonomy,
            train_labels=self._train_labels,
            machine=self._machine,
            ranks=self._ranks,
            teacher=taught_by,
        )
        self._teacher_version = taught_by.version if taught_by else None
        self._step = 0
        self._losses: list[float] = []
        """Of the epoch so far, one a step, over all ranks."""
        self._bad_rows: set[int] = set()
        """Of all ranks, as last agreed."""
        self._new_bad_rows: set[int] = set()
        self._pending: deque[_PendingStep] = deque()
        self._stop_requested = threading.Event()
        self._stopping = False

    @property
    def interrupted(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        """Ask the run to save a checkpoint and return after the step in hand; what a signal does."""
        self._stop_requested.set()

    def run(self) -> None:
        """Train from the run's newest whole checkpoint, or from the start, to the end or to a signal.

        SIGTERM, SIGINT and SIGUSR1 on any rank stop all of them after the same step.

        Raises:
            LossNotFinite: a batch gave a NaN or infinite loss; no weight was changed by it, the batch is named.
            RunError: too many photos cannot be read, a checkpoint is of something else or cannot be written.
        """
        self._begin_run()
        self._times = StepTimes()
        self._resume()
        sampler = ResumableBatchSampler(
            self._train,
            self._train_labels,
            self._recipe,
            first_step=self._step,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            micro_batch=self._machine.micro_batch,
        )
        self._sampler = sampler
        self.train_step.start_schedule(sampler.num_steps)
        batches = training_batches(
            self._train,
            self._train_labels,
            self._recipe,
            sampler,
            num_workers=self._num_workers,
            only_crop=self._machine.augments_on_device(self._ranks.device),
            decode_on=self._ranks.device if self._machine.decode_on == "device" else None,
            features=self._features(),
        )
        progress = Progress(
            self._run.folder,
            num_steps=sampler.num_steps,
            first_step=self._step,
            times=self._times,
            enabled=self._ranks.is_first,
        )
        with self._stopping_on_signals(), progress:
            self._train_on(batches, progress)
        if not self._stopping and not self._run.weights_path.exists():
            self._save()
            if self._ranks.is_first:
                self._run.save_weights(self.train_step.ema.module.state_dict())
        self._ranks.barrier()

    def _begin_run(self) -> None:
        if self._ranks.is_first:
            self._run.begin(
                recipe=self._recipe,
                manifest_url=self._manifest_url,
                manifest=self._manifest,
                taxonomy=self._taxonomy,
                spec=self.train_step.spec,
                teacher=self._teacher_version,
            )
        self._ranks.barrier()

    def _features(self) -> dict[int, npt.NDArray[np.float32]]:
        """Of every training photo, for the stages that train heads_on_features; kept in the run's folder."""
        epochs = range(self._step // self._sampler.steps_per_epoch, self._recipe.num_epochs)
        ahead = [self._recipe.stage_of_epoch(epoch) for epoch in epochs]
        sizes = {stage.photo_px for stage in ahead if stage.trains == "heads_on_features"}
        found: dict[int, npt.NDArray[np.float32]] = {}
        for photo_px in sorted(sizes):
            features = extract_features(
                self.train_step.model,
                self._train,
                Preprocessing(input_px=photo_px),
                device=str(self._ranks.device),
                cache=self._run.folder / "features",
            )
            if features.unusable:
                # Once they are mended the same command must look at them again.
                shutil.rmtree(self._run.folder / "features")
                raise ManifestError(
                    "a linear probe needs every training photo; these cannot be used:", features.unusable
                )
            found[photo_px] = features.values
        return found

    def _train_on(self, batches: Iterable[Batch], progress: Progress) -> None:
        sampler = self._sampler
        source = self._times.measure_wait(batches)
        while micro_batches := list(islice(source, sampler.micro_batches_per_step)):
            epoch = self._step // sampler.steps_per_epoch
            rows = sampler.rows_of_step(self._step)
            result = self.train_step.run(
                self._step, self._recipe.stage_of_epoch(epoch), micro_batches, self._num_labelled(rows)
            )
            self._pending.append(_PendingStep(self._step, result, rows))
            self._note_bad_photos(micro_batches)
            self._step += 1
            epoch_ends = self._step % sampler.steps_per_epoch == 0
            save_due = self._step % self._recipe.checkpoint_every_steps == 0
            self._sync_ranks(look_at_all=epoch_ends or save_due or self._ranks.device.type == "cpu")
            progress.after_step(
                self._step,
                loss=self._losses[-1] if self._losses else None,
                photos_per_s=len(self._losses) * self._recipe.batch_size / max(1e-9, self._times.update_seconds()),
                learning_rate=max(self.train_step.learning_rates()),
            )
            if epoch_ends:
                progress.after_epoch(self._end_epoch())
            if self._stopping:
                self._sync_ranks(look_at_all=True)
                self._save()
                _log.info(
                    "stopped after step %d of %d; the same command goes on from there", self._step, sampler.num_steps
                )
                return
            if save_due:
                self._save()

    def _num_labelled(self, rows: npt.NDArray[np.int64]) -> NumLabelled:
        labels = self._train_labels
        num_categories, num_brands = ((of[rows] >= 0).sum() for of in (labels.category_nodes, labels.brands))
        return NumLabelled(int(num_categories), int(num_brands), len(rows))

    def _sync_ranks(self, *, look_at_all: bool) -> None:
        """Learn of the steps before the one in hand, and whether any rank is to stop: the same on every rank.

        On a GPU the newest step is left in its queue, so that the host prepares the next one meanwhile.
        """
        while len(self._pending) > (0 if look_at_all else 1):
            pending = self._pending.popleft()
            own, norm = pending.result.read()
            stop, num_new_bad, loss = self._ranks.sum(
                [float(self._stop_requested.is_set()), len(self._new_bad_rows), own / self._ranks.world_size]
            )
            # Loss scaling meets gradients that are not finite now and then, and answers them itself.
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.train_step.scaler.is_enabled()):
                self._raise_not_finite(pending, own, norm)
            self._losses.append(loss)
            self._stopping = stop > 0
            if num_new_bad:
                # A photo meets another rank each epoch and is still one bad photo.
                self._bad_rows |= set().union(*self._ranks.gather(self._new_bad_rows))
                self._new_bad_rows = set()
            if len(self._bad_rows) > self._machine.bad_photo_share * len(self._train):
                raise RunError(
                    f"{len(self._bad_rows)} of {len(self._train)} training photos cannot be used, more than the share "
                    f"of {self._machine.bad_photo_share:g} that is allowed; they are named in {self._run.folder}/"
                    "bad_photos*.jsonl; mend them, or raise --bad-photo-share"
                )

    def _raise_not_finite(self, pending: _PendingStep, loss: float, norm: float) -> None:
        named = ", ".join(self._train.photo_url(int(row)) for row in pending.rows[:4])
        own = f"loss {loss}, gradient norm {norm}"
        raise LossNotFinite(
            f"{own} at step {pending.step} on rows {(pending.rows + 1).tolist()} of the train split ({named}, …); no "
            "weight was changed by it and the last checkpoint is unharmed; lower the learning rates or look at these "
            "photos"
        )

    def _note_bad_photos(self, micro_batches: list[Batch]) -> None:
        problems = [json.loads(text) for batch in micro_batches for text in batch.problems if text]
        for problem in problems:
            if problem["row"] not in self._bad_rows | self._new_bad_rows:
                self._new_bad_rows.add(problem["row"])
                self._run.append_bad_photo(problem, rank=self._ranks.rank)
                _log.warning("%s cannot be used (%s); replaced", problem["photo"], problem["reason"])

    def _end_epoch(self) -> dict[str, float | None]:
        epoch = self._step // self._sampler.steps_per_epoch
        stage = self._recipe.stage_of_epoch(epoch - 1)
        train_seconds = self._times.update_seconds()
        record: dict[str, float | None] = {
            "epoch": epoch,
            "step": self._step,
            "photo_px": stage.photo_px,
            "loss": float(np.mean(self._losses)),
            "bad_photos": len(self._bad_rows),
            "photos_per_s": len(self._train) / train_seconds,
            "data_wait_share": self._times.data_wait_share,
        }
        due = epoch % EVALUATE_EVERY_EPOCHS == 0 and stage.trains != "heads_on_features"
        if due or epoch == self._recipe.num_epochs:
            record |= self._evaluate()
        record["seconds"] = self._times.update_seconds()
        if self._ranks.is_first:
            self._run.append_metrics(record)
            _log.info("%s", " ".join(f"{k}={v:.4g}" for k, v in record.items() if v is not None))
        self._losses = []
        self._times.begin_epoch()
        return record

    def _evaluate(self) -> dict[str, float | None]:
        """Quick figures of the averaged weights on val, over photos whose label is a leaf; every rank judges a part."""
        bounds = np.linspace(0, len(self._val), self._ranks.world_size + 1).astype(int)
        batches = evaluation_batches(
            self._val,
            self._val_labels,
            Preprocessing(input_px=self._recipe.input_px),
            batch_size=64,
            num_workers=self._num_workers,
            rows=range(bounds[self._ranks.rank], bounds[self._ranks.rank + 1]),
        )
        # Batch-norm statistics are each rank's own until here.
        self._ranks.broadcast(self.train_step.ema.module.buffers())
        counts = np.zeros(5)
        for batch in batches:
            outputs = self.train_step.infer_averaged(batch.photos_nhwc)
            leaves = torch.from_numpy(self._val_leaves[batch.rows.numpy()])
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

    def _save(self) -> None:
        seconds = self._times.update_seconds()
        if self._ranks.is_first:
            state = {
                "identity": self._identity(),
                "scaler": self.train_step.scaler.state_dict(),
                "losses": self._losses,
                "bad_rows": sorted(self._bad_rows),
                "seconds": seconds,
                "waiting_s": self._times.waiting_s,
            }
            checkpoint = Checkpoint(step=self._step, tensors=self.train_step.export_tensors(), state=state)
            save_checkpoint(self._run.checkpoints, checkpoint, keep=self._machine.keep_checkpoints)
        # No rank exits, and has the launcher stop the others, while the file is being written.
        self._ranks.barrier()

    def _identity(self) -> dict[str, object]:
        """What a checkpoint can only be gone on with."""
        asked = {"format": _CHECKPOINT_FORMAT, "listing_vision": vision.__version__, **self._run.read_settings()}
        kept = ("format", "listing_vision", "recipe", "manifest_sha256", "taxonomy_sha256", "teacher")
        return {key: asked[key] for key in kept if key in asked}

    def _resume(self) -> None:
        path = self._ranks.gather(latest_checkpoint(self._run.checkpoints) if self._ranks.is_first else None)[0]
        if path is None:
            if self._ranks.is_first:
                self._run.drop_metrics_after(0)
            return
        checkpoint = load_checkpoint(path)
        differing = list_differences(checkpoint.state.get("identity", {}), self._identity())
        if differing:
            raise RunError(
                f"{path} was made by something else ({'; '.join(differing)}); give another --run folder, or go on with "
                "what it was made by"
            )
        self.train_step.load_tensors(checkpoint.tensors)
        # Empty where the run used another precision so far.
        if checkpoint.state["scaler"] and self.train_step.scaler.is_enabled():
            self.train_step.scaler.load_state_dict(checkpoint.state["scaler"])
        self._bad_rows = set(checkpoint.state["bad_rows"])
        self._step = checkpoint.step
        self._losses = list(checkpoint.state["losses"])
        self._times.seconds, self._times.waiting_s = checkpoint.state["seconds"], checkpoint.state["waiting_s"]
        if self._ranks.is_first:
            self._run.drop_metrics_after(self._step)
            _log.info("resumed from %s", path)

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def require_trained_labels(train: Labels, val: Labels, taxonomy: Taxonomy) -> None:
    """Refuse a val split that asks for what train does not show."""
    problems = []
    train_leaves, val_leaves = (build_ground_truth(labels, taxonomy).leaves for labels in (train, val))
    for kind, names, taught, asked in (
        ("category", taxonomy.leaf_ids, train_leaves, val_leaves),
        ("brand", taxonomy.brand_labels, train.brands, val.brands),
    ):
        for label in np.setdiff1d(asked[asked >= 0], taught):
            problems.append(f"{kind} {names[label]!r}: {(asked == label).sum()} val photos, none in train")
    if problems:
        raise ManifestError(
            "the val split has labels that no train photo has; make another split (`listing-vision data split`), or "
            "leave these labels empty:",
            problems,
        )
