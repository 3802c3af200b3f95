"""The training loop: steps, epochs and checkpoints, on one rank or many, from which a later run resumes."""

import logging
import math
import platform
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import vision
from training.errors import LossNotFinite, RunError
from training.recipe import Recipe
from training.run import Run, list_differences
from training.trackers import TensorBoard, Tracker, Trackers
from training.trainer.bad_photos import BadPhotos
from training.trainer.checkpoint import Checkpoint, find_latest_checkpoint, load_checkpoint, save_checkpoint
from training.trainer.distillation import Teacher
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from training.trainer.loading.dataloader import Batch, create_training_batches
from training.trainer.loading.sampler import ResumableBatchSampler
from training.trainer.losses import NumLabelled
from training.trainer.probe_features import make_probe_features
from training.trainer.progress import RunProgress, StepTimes, TimeLeft
from training.trainer.step_memory import choose_micro_batch
from training.trainer.stop_signals import call_on_stop_signals
from training.trainer.train_step import StepResult, TrainStep
from training.trainer.validation import Validation, WeightChoice, require_trained_labels
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

__all__ = ["TrainingLoop"]

_log = logging.getLogger(__name__)

_CHECKPOINT_FORMAT = 3


class _PendingStep(NamedTuple):
    """A step whose loss has not been read yet."""

    step: int
    result: StepResult
    rows: npt.NDArray[np.int64]


class TrainingLoop:
    """Fine-tunes one classifier by a recipe. Create it on every rank and call `run()`; then read `interrupted`."""

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
        trackers: Sequence[Tracker] = (),
        stop_requested: threading.Event | None = None,
    ) -> None:
        """Args:
        teacher: bundle or finished run for recipes with a `distillation_weight`.
        trackers: that get the run's figures, beside TensorBoard.
        stop_requested: set, by whoever, it does what `stop` does.
        """
        self._recipe, self._run = recipe, run
        self._machine = machine or Machine()
        self._ranks = ranks or Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._manifest_url, self._manifest, self._taxonomy = manifest_url, manifest, taxonomy
        self._train, val = manifest.select_split("train"), manifest.select_split("val")
        self._train_labels = self._train.resolve_labels(taxonomy, out_of_scope=recipe.outlier_exposure_weight > 0)
        require_trained_labels(self._train_labels, val.resolve_labels(taxonomy, out_of_scope=True), taxonomy)
        self._num_workers = self._machine.count_workers(self._ranks.device)
        self.validation = Validation(
            val, taxonomy, input_px=recipe.input_px, num_workers=self._num_workers, ranks=self._ranks
        )
        self.train_step = TrainStep(
            recipe,
            taxonomy=taxonomy,
            train_labels=self._train_labels,
            machine=self._machine,
            ranks=self._ranks,
            teacher=Teacher.load(teacher, taxonomy, self._ranks.device) if teacher else None,
        )
        self._step = 0
        self._losses: list[float] = []
        """Losses of the epoch so far, one a step, over all ranks."""
        self._bad_photos = BadPhotos(
            run, self._ranks, num_photos=len(self._train), max_share=self._machine.max_bad_photo_share
        )
        self._choice = WeightChoice(recipe.early_stopping_epochs)
        self._pending: deque[_PendingStep] = deque()
        self._trackers = [TensorBoard(), *trackers] if self._ranks.is_first else []
        self._stop_requested = stop_requested or threading.Event()
        self.interrupted = False
        self._val_features: Path | None = None
        """Features of val's photos, until a stage trains the backbone."""

    def stop(self) -> None:
        """Request a checkpoint and an early return of `run()` after the step or batch of val under way."""
        self._stop_requested.set()

    def run(self) -> None:
        """Train from the run's newest intact checkpoint, or from the start, until the end or a signal.

        SIGTERM, SIGINT and SIGUSR1 on any rank stop all ranks after the same step.

        Raises:
            LossNotFinite: a batch gave a NaN or infinite loss; names the batch, which has changed no weight.
            RunError: too many photos cannot be read, or a checkpoint belongs to another run or cannot be written.
        """
        if self._ranks.is_first:
            self._run.begin(
                recipe=self._recipe,
                manifest_url=self._manifest_url,
                manifest=self._manifest,
                taxonomy=self._taxonomy,
                spec=self.train_step.spec,
                models=self.train_step.models,
            )
        if self._ranks.gather(self._run.finished)[0]:
            return
        self._times = StepTimes()
        self._resume()
        self._sampler = sampler = ResumableBatchSampler(
            self._train,
            self._train_labels,
            self._recipe,
            first_step=self._step,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            micro_batch=choose_micro_batch(self._machine, self.train_step.model, self._recipe, self._ranks),
        )
        # An epoch's losses are kept until it is evaluated, which a stop may have left to this process.
        self._val_is_due = self._step % sampler.steps_per_epoch == 0 and bool(self._losses)
        self.train_step.start_schedule(sampler.num_steps)
        trackers = Trackers(self._trackers, self._run, first_step=self._step)
        with call_on_stop_signals(self.stop), trackers:
            batches = self._create_batches()
            if not self.interrupted:
                self._times.skip()
                left = TimeLeft(self._recipe, steps_per_epoch=sampler.steps_per_epoch)
                with RunProgress(trackers, left, first_step=self._step, enabled=self._ranks.is_first) as progress:
                    self._train_batches(batches, progress)
            trackers.interrupted = self.interrupted
        if not self.interrupted:
            self._save()
            if self._ranks.is_first:
                last, best = self.train_step.export_averaged(), self._choice.tensors
                self._run.save_weights(last=last, best=best, final=self._recipe.final_weights)
        self._ranks.barrier()

    def _create_batches(self) -> Iterable[Batch]:
        """Batches of the steps ahead; none if a stop was requested before their features were made."""
        epochs = range(self._step // self._sampler.steps_per_epoch - self._val_is_due, self._recipe.num_epochs)
        stages = {self._recipe.stage_of_epoch(epoch) for epoch in epochs}
        sizes_px = {stage.photo_px for stage in stages if stage.trains == "heads_on_features"}
        features = make_probe_features(
            self.train_step.model,
            *(self._train, sizes_px),
            *(self.validation.manifest, self._recipe.input_px),
            cache=self._run.folder / "features",
            ranks=self._ranks,
            stop=self._stop_requested.is_set,
        )
        if features is None:
            self.interrupted = True
            _log.info("stopped before the first step; repeat the command to resume from there")
            return []
        self._val_features = features.val
        return create_training_batches(
            self._train,
            self._train_labels,
            self._recipe,
            self._sampler,
            # Rows of a table need no process to load them.
            num_workers=0 if all(stage.trains == "heads_on_features" for stage in stages) else self._num_workers,
            only_crop=self._machine.augments_on_device(self._ranks.device),
            decode_on=self._ranks.device if self._machine.decode_on == "device" else None,
            features=features.train,
        )

    def _train_batches(self, batches: Iterable[Batch], progress: RunProgress) -> None:
        sampler = self._sampler
        if self._val_is_due:
            self._end_epoch(progress)
        source = self._times.measure_wait(batches)
        while (
            not self.interrupted
            and not self._choice.ends_run(self._step / sampler.steps_per_epoch)
            and (micro_batches := list(islice(source, sampler.micro_batches_per_step)))
        ):
            rows = sampler.get_step_rows(self._step)
            labels = self._train_labels
            num_labelled = NumLabelled.from_labels(labels.category_nodes[rows], labels.brands[rows])
            stage = self._recipe.stage_of_epoch(self._step // sampler.steps_per_epoch)
            result = self.train_step.run(self._step, stage, micro_batches, num_labelled)
            self._pending.append(_PendingStep(self._step, result, rows))
            self._bad_photos.record(micro_batches)
            self._step += 1
            epoch_ends = self._step % sampler.steps_per_epoch == 0
            save_due = self._step % self._recipe.checkpoint_every_steps == 0
            self._sync_ranks(read_all=epoch_ends or save_due or self._ranks.device.type == "cpu")
            progress.on_step_end(
                self._step,
                loss=self._losses[-1] if self._losses else None,
                photos_per_s=len(self._losses) * self._recipe.batch_size / max(1e-9, self._times.update_seconds()),
                data_wait_share=self._times.data_wait_share,
                learning_rate=max(self.train_step.get_learning_rates()),
            )
            if epoch_ends:
                self._end_epoch(progress)
            if self.interrupted:
                self._sync_ranks(read_all=True)
            if save_due or self.interrupted:
                self._save()
        if self.interrupted:
            _log.info("stopped after step %d of %d; repeat the command to resume", self._step, sampler.num_steps)

    def _sync_ranks(self, *, read_all: bool) -> None:
        """Read the results of pending steps, with the same losses, bad photos and stop requests on every rank.

        Without `read_all` the newest step stays pending, so that the host prepares the next step while a GPU works.
        """
        while len(self._pending) > (0 if read_all else 1):
            pending = self._pending.popleft()
            own, norm = pending.result.read()
            stop, num_new_bad, loss = self._ranks.sum(
                [float(self._stop_requested.is_set()), self._bad_photos.num_new, own / self._ranks.world_size]
            )
            # With loss scaling, gradients that are not finite are normal: the scaler skips the step.
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.train_step.scaler.is_enabled()):
                raise _create_loss_error(pending, own, norm, self._train)
            self._losses.append(loss)
            self.interrupted = stop > 0
            if num_new_bad:
                self._bad_photos.merge()
            self._bad_photos.require_few()

    def _end_epoch(self, progress: RunProgress) -> None:
        """Evaluate on val and judge the weights; not if a stop is requested meanwhile, and then it is due again."""
        epoch = self._step // self._sampler.steps_per_epoch
        stage = self._recipe.stage_of_epoch(epoch - 1)
        train_seconds = self._times.update_seconds()
        ranks = _gather_throughput(self._ranks, self._times, num_photos=len(self._train))
        record: dict[str, float | None] = {"epoch": epoch, "step": self._step, "photo_px": stage.photo_px}
        record |= {"loss": float(np.mean(self._losses)), "bad_photos": len(self._bad_photos.rows)}
        record |= self._times.describe_epoch(len(self._train))
        on_features = self._val_features if stage.trains == "heads_on_features" else None
        judged = self.validation.evaluate(self.train_step, on_features, stop=self._stop_requested.is_set)
        if judged is None:
            self.interrupted = True
            self._times.rewind(train_seconds)
            return
        record |= judged
        averaged = self.train_step.export_averaged()
        self._choice.judge(epoch, record, averaged if self._ranks.is_first else {})
        seconds = self._times.update_seconds()
        record |= {"val_seconds": seconds - train_seconds, "seconds": seconds}
        if self._ranks.is_first:
            self._run.append_metrics(record | ranks)
            _log.info("%s", " ".join(f"{k}={v:.4g}" for k, v in record.items() if v is not None))
        self._losses = []
        self._times.begin_epoch()
        progress.on_epoch_end(record)

    def _save(self) -> None:
        seconds = self._times.update_seconds()
        if self._ranks.is_first:
            state = {
                "identity": _build_identity(self._run),
                "scaler": self.train_step.scaler.state_dict(),
                "losses": self._losses,
                "bad_rows": sorted(self._bad_photos.rows),
                "seconds": seconds,
                "waiting_s": self._times.waiting_s,
                "best": self._choice.export_state(),
            }
            tensors = self.train_step.export_tensors() | self._choice.export_tensors()
            checkpoint = Checkpoint(step=self._step, tensors=tensors, state=state)
            save_checkpoint(self._run.checkpoints, checkpoint, keep=self._machine.keep_checkpoints)
        # A rank that exits while the file is being written would make the launcher stop the others.
        self._ranks.barrier()

    def _resume(self) -> None:
        path = self._ranks.gather(find_latest_checkpoint(self._run.checkpoints) if self._ranks.is_first else None)[0]
        if path:
            checkpoint = _load_own_checkpoint(path, self._run)
            self.train_step.load_tensors(checkpoint.tensors)
            # Empty if the run has used another precision so far.
            if checkpoint.state["scaler"] and self.train_step.scaler.is_enabled():
                self.train_step.scaler.load_state_dict(checkpoint.state["scaler"])
            self._choice.load(checkpoint.state["best"], checkpoint.tensors)
            self._bad_photos.rows = set(checkpoint.state["bad_rows"])
            self._step = checkpoint.step
            self._losses = list(checkpoint.state["losses"])
            self._times.seconds, self._times.waiting_s = checkpoint.state["seconds"], checkpoint.state["waiting_s"]
        if self._ranks.is_first:
            self._run.drop_metrics_after(self._step)
            if path:
                _log.info("resumed from %s", path)
            elif self.train_step.carried_heads:
                _log.info("heads of %s: %s", self._recipe.weights, self.train_step.carried_heads)


def _gather_throughput(ranks: Ranks, times: StepTimes, *, num_photos: int) -> dict[str, list[dict[str, object]]]:
    """Host, photos a second and waiting of each rank in an epoch of so many photos; nothing for a rank alone."""
    own: dict[str, object] = {"host": platform.node(), **times.describe_epoch(num_photos / ranks.world_size)}
    gathered = ranks.gather(own)
    return {"ranks": gathered} if len(gathered) > 1 else {}


def _create_loss_error(pending: _PendingStep, loss: float, norm: float, train: Manifest) -> LossNotFinite:
    photos = ", ".join(train.get_photo_url(int(row)) for row in pending.rows[:4])
    return LossNotFinite(
        f"loss {loss}, gradient norm {norm} at step {pending.step} on rows {(pending.rows + 1).tolist()} of the "
        f"train split ({photos}, …); no weight was changed by it and the last checkpoint is intact; lower the "
        "learning rates or look at these photos"
    )


def _build_identity(run: Run) -> dict[str, object]:
    """What must be equal for a run to resume from a checkpoint."""
    settings = {"format": _CHECKPOINT_FORMAT, "listing_vision": vision.__version__, **run.read_settings()}
    kept = ("format", "listing_vision", "recipe", "manifest_sha256", "taxonomy_sha256", "teacher", "weights_version")
    return {key: settings[key] for key in kept if key in settings}


def _load_own_checkpoint(path: Path, run: Run) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    differing = list_differences(checkpoint.state.get("identity", {}), _build_identity(run))
    if differing:
        raise RunError(
            f"{path} was made by something else ({'; '.join(differing)}); give another --run folder, or "
            "resume with the same settings"
        )
    return checkpoint
