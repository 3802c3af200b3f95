"""Speed of the data loader and of the model at the photo sizes of a recipe."""

import dataclasses
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from training.recipe import Recipe, Stage
from training.trainer.autotune.estimates import create_single_rank, estimate_minutes
from training.trainer.hardware import Machine
from training.trainer.loading.dataloader import Batch, create_training_batches
from training.trainer.loading.sampler import ResumableBatchSampler
from training.trainer.losses import NumLabelled
from training.trainer.probe_features import make_probe_features
from training.trainer.step_memory import choose_micro_batch
from training.trainer.train_step import TrainStep
from vision.manifest import Labels, Manifest
from vision.taxonomy import Taxonomy

__all__ = ["LoaderSpeed", "ProbeSpeed", "RecipeSpeed", "measure_loader", "measure_photos_per_s"]


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    stage: Stage
    """With the speed of the model."""
    num_workers: int
    loader_photos_per_s: float
    model_photos_per_s: float

    @property
    def photos_per_s(self) -> float:
        """Speed of both together; with loader processes the slower one decides."""
        if self.num_workers == 0:
            return 1 / (1 / self.loader_photos_per_s + 1 / self.model_photos_per_s)
        return min(self.loader_photos_per_s, self.model_photos_per_s)

    def describe_bottleneck(self) -> str:
        if self.num_workers == 0:
            share = self.photos_per_s / self.loader_photos_per_s
            return f"one after the other {self.photos_per_s:.0f} photos/s, {share:.0%} of the time is loading"
        if self.loader_photos_per_s < self.model_photos_per_s:
            return "the loader is the limit; give more --workers or smaller files"
        return "the model is the limit"


@dataclass(frozen=True, kw_only=True)
class ProbeSpeed:
    """Speeds at a photo size at which a recipe trains heads on features."""

    photo_px: int
    epochs: int
    features_photos_per_s: float
    """Decoding and backbone, once for each photo."""
    heads_photos_per_s: float
    """Loading features and training heads on them, in every epoch."""


@dataclass(frozen=True, kw_only=True)
class RecipeSpeed:
    recipe: Recipe
    num_photos: int
    """In the train split."""
    loaders: Sequence[LoaderSpeed]
    """One for each size at which photos go through the model in every epoch."""
    probes: Sequence[ProbeSpeed]

    def estimate_minutes(self) -> float:
        """How long the recipe takes, val left out."""
        minutes = 0.0
        if self.loaders:
            last = self.loaders[-1]
            stages = tuple(stage for stage in self.recipe.stages if stage.trains != "heads_on_features")
            on_photos = dataclasses.replace(self.recipe, stages=stages)
            minutes += estimate_minutes(on_photos, self.num_photos, stage=last.stage, photos_per_s=last.photos_per_s)
        for probe in self.probes:
            seconds_per_photo = 1 / probe.features_photos_per_s + probe.epochs / probe.heads_photos_per_s
            minutes += seconds_per_photo * self.num_photos / 60
        return minutes


def measure_loader(
    recipe: Recipe, manifest: Manifest, taxonomy: Taxonomy, *, num_photos: int, micro_batch: int | None = None
) -> RecipeSpeed:
    """Speed of the data loader alone and of the model alone, at every photo size of the recipe; no teacher is asked.

    Args:
        recipe: whose stages to measure.
        manifest: with a train split.
        taxonomy: of its labels.
        num_photos: about so many are loaded at each size.
        micro_batch: photos at once; None for what the memory holds.

    Raises:
        ManifestError: unknown labels, or photos that a linear probe needs and that cannot be used.
        RunError: fewer photos than a batch, or not even two fit into memory.
    """
    measurement = _Measurement(recipe, manifest.select_split("train"), taxonomy, num_photos, micro_batch)
    stages = {stage.photo_px: stage for stage in recipe.stages if stage.trains != "heads_on_features"}
    probes = [stage for stage in recipe.stages if stage.trains == "heads_on_features"]
    return RecipeSpeed(
        recipe=recipe,
        num_photos=len(measurement.train),
        loaders=[measurement.measure_stage(stage) for stage in stages.values()],
        probes=[
            measurement.measure_probe(photo_px, sum(stage.epochs for stage in probes if stage.photo_px == photo_px))
            for photo_px in dict.fromkeys(stage.photo_px for stage in probes)
        ],
    )


class _Measurement:
    """Steps of a run on one rank."""

    def __init__(
        self, recipe: Recipe, train: Manifest, taxonomy: Taxonomy, num_photos: int, micro_batch: int | None
    ) -> None:
        self._recipe = dataclasses.replace(recipe, distillation_weight=0.0)
        self.train, self._taxonomy, self._num_photos = train, taxonomy, num_photos
        self._ranks, self._machine = create_single_rank(), Machine(micro_batch=micro_batch)
        self._num_workers = self._machine.count_workers(self._ranks.device)
        # By the largest size of all stages, as in a run.
        model = self._create_train_step().model
        self._machine = Machine(micro_batch=choose_micro_batch(self._machine, model, self._recipe, self._ranks))

    def measure_stage(self, stage: Stage) -> LoaderSpeed:
        steps = self._iterate_steps(stage, self.train)
        first = next(steps)
        begun_s, loaded = time.perf_counter(), 0
        for micro_batches in steps:
            loaded += sum(len(batch.rows) for batch in micro_batches)
            if loaded >= self._num_photos:
                break
        loader_photos_per_s = loaded / (time.perf_counter() - begun_s)
        steps.close()  # its processes would read on beside the model
        num_steps = max(2, self._num_photos // self._recipe.batch_size // 4)
        return LoaderSpeed(
            stage=stage,
            num_workers=self._num_workers,
            loader_photos_per_s=loader_photos_per_s,
            model_photos_per_s=measure_photos_per_s(self._create_train_step(), stage, first, num_steps),
        )

    def measure_probe(self, photo_px: int, epochs: int) -> ProbeSpeed:
        size = min(len(self.train), max(self._num_photos, self._recipe.batch_size))
        # From all over the manifest, which may be sorted by class or by shop.
        sample = self.train.take(np.arange(size) * len(self.train) // size)
        train_step = self._create_train_step()
        with torch.inference_mode():  # the first pass allocates
            train_step.infer_averaged(torch.zeros(2, photo_px, photo_px, 3, dtype=torch.uint8))
        with tempfile.TemporaryDirectory() as cache:
            begun_s = time.perf_counter()
            made = make_probe_features(
                train_step.model,
                sample,
                {photo_px},
                sample,
                photo_px,
                cache=Path(cache),
                ranks=self._ranks,
                stop=lambda: False,
            )
            features_photos_per_s = size / (time.perf_counter() - begun_s)
            assert made is not None
            stage = Stage(photo_px=photo_px, epochs=1, trains="heads_on_features")
            heads_photos_per_s = _measure_heads(train_step, stage, self._iterate_steps(stage, sample, made.train))
        return ProbeSpeed(
            photo_px=photo_px,
            epochs=epochs,
            features_photos_per_s=features_photos_per_s,
            heads_photos_per_s=heads_photos_per_s,
        )

    def _create_train_step(self) -> TrainStep:
        labels = self._resolve_labels(self.train)
        return TrainStep(
            self._recipe, taxonomy=self._taxonomy, train_labels=labels, machine=self._machine, ranks=self._ranks
        )

    def _resolve_labels(self, train: Manifest) -> Labels:
        return train.resolve_labels(self._taxonomy, out_of_scope=self._recipe.outlier_exposure_weight > 0)

    def _iterate_steps(
        self, stage: Stage, train: Manifest, features: Mapping[int, Path] | None = None
    ) -> Generator[list[Batch]]:
        """Micro-batches of each step, of at least two steps and `num_photos`."""
        stage = dataclasses.replace(stage, epochs=2 + self._num_photos // len(train))
        recipe, labels = dataclasses.replace(self._recipe, stages=(stage,)), self._resolve_labels(train)
        sampler = ResumableBatchSampler(train, labels, recipe, micro_batch=self._machine.micro_batch)
        batches = iter(
            create_training_batches(
                train,
                labels,
                recipe,
                sampler,
                num_workers=self._num_workers,
                only_crop=self._machine.augments_on_device(self._ranks.device),
                features=features,
            )
        )
        while micro_batches := list(islice(batches, sampler.micro_batches_per_step)):
            yield micro_batches


def measure_photos_per_s(train_step: TrainStep, stage: Stage, micro_batches: Sequence[Batch], num_steps: int) -> float:
    """Speed of the median of so many steps over the same micro-batches."""
    num_labelled = _count_labelled(micro_batches)
    seconds = []
    for step in range(num_steps + 1):
        begun_s = time.perf_counter()
        # Reading the loss waits until the device is done.
        train_step.run(step, stage, micro_batches, num_labelled).read()
        seconds.append(time.perf_counter() - begun_s)
    # The first step allocates and, on a GPU, compiles.
    return sum(len(batch.rows) for batch in micro_batches) / float(np.median(seconds[1:]))


def _measure_heads(train_step: TrainStep, stage: Stage, steps: Iterator[list[Batch]]) -> float:
    train_step.run(0, stage, first := next(steps), _count_labelled(first)).read()
    begun_s, trained = time.perf_counter(), 0
    for step, micro_batches in enumerate(steps, start=1):
        train_step.run(step, stage, micro_batches, _count_labelled(micro_batches)).read()
        trained += sum(len(batch.rows) for batch in micro_batches)
    return trained / (time.perf_counter() - begun_s)


def _count_labelled(micro_batches: Sequence[Batch]) -> NumLabelled:
    return NumLabelled.from_labels(
        np.concatenate([batch.category_nodes.numpy() for batch in micro_batches]),
        np.concatenate([batch.brands.numpy() for batch in micro_batches]),
    )
