"""The training loop: one machine, CPU or CUDA, with checkpoints that a later run goes on from exactly."""

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from timm.utils.model_ema import ModelEmaV3
from tqdm import tqdm

from training.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from training.evaluation import truth_by_depth
from training.loader import Batch, evaluation_batches, training_batches
from training.losses import listing_loss
from training.memory import keep_freed_memory
from training.pretrained import create_backbone
from training.recipe import Recipe
from training.run import Run
from vision.errors import LossNotFinite, RunError
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.metrics import top_k_accuracy
from vision.model import ListingClassifier, ModelSpec
from vision.taxonomy import Taxonomy

__all__ = ["Trainer", "default_num_workers", "pick_device"]

_log = logging.getLogger(__name__)

EVALUATE_EVERY_EPOCHS = 4


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_num_workers() -> int:
    """None on a CPU machine, where loaders take the model's cores; most cores beside a GPU.

    Measured on 2 cores at 128 px: 53 photos/s with none, 47 with one, 42 with two.
    """
    cores = len(os.sched_getaffinity(0))
    return min(16, max(1, cores - 1)) if torch.cuda.is_available() else 0


class Trainer:
    """Fine-tunes one classifier by a recipe. Build it, call `run()`; `interrupted` tells how it ended."""

    def __init__(
        self, recipe: Recipe, *, manifest: Manifest, taxonomy: Taxonomy, run: Run, num_workers: int | None = None
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._num_workers = default_num_workers() if num_workers is None else num_workers
        self._device = pick_device()
        if self._device.type == "cpu":
            keep_freed_memory()
        self._train = manifest.where_split("train")
        self._train_labels = self._train.labels(taxonomy)
        self._val = manifest.where_split("val")
        self._val_labels = self._val.labels(taxonomy)
        self._val_leaves = truth_by_depth(self._val_labels, taxonomy).leaves
        self._leaves_below = torch.from_numpy(taxonomy.leaves_below).to(self._device)
        torch.manual_seed(recipe.seed)
        backbone = create_backbone(recipe.backbone, recipe.weights)
        cfg: dict[str, Any] = getattr(backbone, "pretrained_cfg", {})
        spec = ModelSpec(
            backbone=recipe.backbone,
            num_categories=len(taxonomy.leaf_ids),
            num_brands=len(taxonomy.brand_labels),
            mean=tuple(cfg.get("mean", (0.5, 0.5, 0.5))),
            std=tuple(cfg.get("std", (0.5, 0.5, 0.5))),
        )
        self.spec = spec
        model = ListingClassifier(spec, backbone, dropout=recipe.dropout)
        self._model = model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks the device + memory_format form
        self._ema = ModelEmaV3(self._model, decay=recipe.ema_decay, use_warmup=True)
        self._optimizer = torch.optim.AdamW(self._parameter_groups())
        self._amp_dtype = _amp_dtype(self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._amp_dtype is torch.float16)
        self._step = 0
        self._losses: list[float] = []
        self._seconds = 0.0
        """Of the epoch so far; evaluation is part of the epoch that it ends."""
        self._stop_asked = threading.Event()

    @property
    def interrupted(self) -> bool:
        return self._stop_asked.is_set()

    def run(self) -> None:
        """Train from the run's newest whole checkpoint, or from the start, to the end or to SIGTERM/SIGINT.

        Raises:
            LossNotFinite: a batch gave a NaN or infinite loss; nothing was stepped, the batch is named.
            RunError: a photo cannot be read, or the checkpoint is of another recipe.
        """
        self._mark_s = time.monotonic()
        self._resume()
        loader, self._steps_per_epoch = training_batches(
            self._train, self._train_labels, self._recipe, first_step=self._step, num_workers=self._num_workers
        )
        num_steps = self._steps_per_epoch * self._recipe.num_epochs
        with self._stopping_on_signals(), tqdm(total=num_steps, initial=self._step, unit="step", disable=None) as bar:
            for batch in loader:
                self._losses.append(self._train_step(batch, num_steps))
                bar.update()
                if self._step % self._steps_per_epoch == 0:
                    bar.set_postfix(loss=f"{np.mean(self._losses):.3f}")
                    self._end_epoch()
                if self._stop_asked.is_set():
                    self._save()
                    _log.info("stopped after step %d of %d; the same command goes on from there", self._step, num_steps)
                    return
                if self._step % self._recipe.checkpoint_every_steps == 0:
                    self._save()
        if not self._run.weights_path.exists():
            self._save()
            # Whoever sees the file sees all of it: its existence says that the run has finished.
            temporary = self._run.weights_path.with_suffix(".tmp")
            save_file({k: v.contiguous() for k, v in self._ema.module.state_dict().items()}, temporary)
            temporary.replace(self._run.weights_path)

    def _train_step(self, batch: Batch, num_steps: int) -> float:
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self._schedule(self._step / num_steps)
        # Dropout is drawn from the step's own seed, so that a resumed run draws the same.
        torch.manual_seed(self._recipe.seed * 1_000_003 + self._step)
        photos = batch.photos_nhwc.to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
            outputs = self._model(photos)
        loss = listing_loss(
            outputs.category_logits,
            outputs.brand_logits,
            category_nodes=batch.category_nodes.to(self._device),
            brands=batch.brands.to(self._device),
            leaves_below=self._leaves_below,
            brand_weight=self._recipe.brand_loss_weight,
            label_smoothing=self._recipe.label_smoothing,
        )
        value = float(loss.detach())
        if not math.isfinite(value):
            photos_named = ", ".join(self._train.photo_url(int(row)) for row in batch.rows[:4])
            raise LossNotFinite(
                f"loss {value} at step {self._step} on manifest rows {(batch.rows + 1).tolist()} ({photos_named}, …); "
                "the last checkpoint is unharmed; lower the learning rates or look at these photos"
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.gradient_clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._step += 1
        self._ema.update(self._model, step=self._step)
        return value

    def _schedule(self, progress: float) -> float:
        warmup = self._recipe.warmup_share
        if progress < warmup:
            return (progress + 1e-3) / (warmup + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))

    def _clock(self) -> float:
        """Seconds that the epoch has taken, those before an interruption included."""
        now_s = time.monotonic()
        self._seconds += now_s - self._mark_s
        self._mark_s = now_s
        return self._seconds

    def _end_epoch(self) -> None:
        epoch = self._step // self._steps_per_epoch
        train_seconds = self._clock()
        record: dict[str, float | None] = {
            "epoch": epoch,
            "step": self._step,
            "photo_px": self._recipe.photo_px_of_epoch(epoch - 1),
            "loss": float(np.mean(self._losses)),
            "photos_per_s": len(self._losses) * self._recipe.batch_size / train_seconds,
        }
        if epoch % EVALUATE_EVERY_EPOCHS == 0 or epoch == self._recipe.num_epochs:
            record |= self._evaluate()
        record["seconds"] = self._clock()
        self._run.append_metrics(record)
        _log.info("%s", " ".join(f"{k}={v:.4g}" for k, v in record.items() if v is not None))
        self._losses, self._seconds = [], 0.0

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float | None]:
        """Quick figures of the averaged weights on val, over photos whose label is a leaf."""
        model = self._ema.module.eval()
        batches = evaluation_batches(
            self._val,
            self._val_labels,
            Preprocessing(input_px=self._recipe.input_px),
            batch_size=64,
            num_workers=self._num_workers,
        )
        outputs = [model(batch.photos_nhwc.to(self._device)) for batch in batches]
        category_logits = torch.cat([o.category_logits for o in outputs]).cpu().numpy()
        brand_logits = torch.cat([o.brand_logits for o in outputs]).cpu().numpy()
        figures = {
            "val_leaf_top1": top_k_accuracy(category_logits, self._val_leaves, k=1),
            "val_brand_top1": top_k_accuracy(brand_logits, self._val_labels.brands, k=1),
        }
        return {name: None if math.isnan(value) else value for name, value in figures.items()}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        for prefix, peak_lr in (
            ("backbone.", self._recipe.backbone_learning_rate),
            ("", self._recipe.head_learning_rate),
        ):
            chosen = [p for name, p in self._model.named_parameters() if name.startswith("backbone.") == bool(prefix)]
            groups.append(
                {
                    "params": [p for p in chosen if p.ndim > 1],
                    "weight_decay": self._recipe.weight_decay,
                    "peak_lr": peak_lr,
                }
            )
            groups.append({"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0, "peak_lr": peak_lr})
        return groups

    def _save(self) -> None:
        names = {parameter: name for name, parameter in self._model.named_parameters()}
        tensors = {f"model.{k}": v for k, v in self._model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self._ema.module.state_dict().items()}
        for parameter, moments in self._optimizer.state.items():
            tensors |= {f"optimizer.{names[parameter]}.{k}": v for k, v in moments.items()}
        state = {
            "recipe": self._recipe.to_dict(),
            "scaler": self._scaler.state_dict(),
            "losses": self._losses,
            "seconds": self._clock(),
        }
        save_checkpoint(self._run.checkpoints, Checkpoint(step=self._step, tensors=tensors, state=state))

    def _resume(self) -> None:
        path = latest_checkpoint(self._run.checkpoints)
        if path is None:
            return
        checkpoint = load_checkpoint(path)
        if checkpoint.state["recipe"] != json.loads(json.dumps(self._recipe.to_dict())):
            raise RunError(f"{path} was made by another recipe; give another --run folder or the recipe it began with")
        self._model.load_state_dict(_under(checkpoint.tensors, "model."))
        self._ema.module.load_state_dict(_under(checkpoint.tensors, "ema."))
        for name, parameter in self._model.named_parameters():
            moments = _under(checkpoint.tensors, f"optimizer.{name}.")
            if moments:
                self._optimizer.state[parameter] = {
                    k: v if k == "step" else torch.empty_like(parameter).copy_(v) for k, v in moments.items()
                }
        self._scaler.load_state_dict(checkpoint.state["scaler"])
        self._step = checkpoint.step
        self._losses, self._seconds = list(checkpoint.state["losses"]), checkpoint.state["seconds"]
        self._run.forget_metrics_after(self._step)
        _log.info("resumed from %s", path)

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, lambda *_: self._stop_asked.set()) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _amp_dtype(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _under(tensors: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
