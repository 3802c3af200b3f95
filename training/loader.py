"""From a manifest to batches of uint8 photos, in an order that a resumed run repeats exactly."""

import hashlib
import signal
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from training.recipe import Recipe
from vision.errors import PhotoError, RunError
from vision.images import Preprocessing, decode_photo, prepare_photo
from vision.manifest import Labels, Manifest, photo_bytes

__all__ = ["Batch", "evaluation_batches", "training_batches"]


class Batch(NamedTuple):
    photos_nhwc: torch.Tensor
    """(N, H, W, 3) uint8."""
    category_nodes: torch.Tensor
    """(N,) int64; -1 where missing."""
    brands: torch.Tensor
    """(N,) int64; -1 where missing."""
    rows: torch.Tensor
    """(N,) int64 rows of the manifest, to name a batch by."""


class _Draw(NamedTuple):
    """One photo's turn in training: which row, in which epoch, at which size."""

    row: int
    epoch: int
    photo_px: int


class _Photos(Dataset[Batch]):
    def __init__(self, manifest: Manifest, labels: Labels) -> None:
        self._manifest = manifest
        self._labels = labels

    def _item(self, photo: npt.NDArray[np.uint8], row: int) -> Batch:
        return Batch(
            torch.from_numpy(photo),
            torch.tensor(self._labels.category_nodes[row]),
            torch.tensor(self._labels.brands[row]),
            torch.tensor(row),
        )

    def _bytes(self, row: int) -> bytes:
        return photo_bytes(self._manifest.photo_url(row))

    def _named(self, row: int, error: Exception) -> RunError:
        return RunError(
            f"photo {self._manifest.photo_url(row)} (manifest row {row + 1}) cannot be used: {error}; "
            "run `listing-vision data check` to find all of them"
        )


class _TrainingPhotos(_Photos):
    def __init__(self, manifest: Manifest, labels: Labels, recipe: Recipe) -> None:
        super().__init__(manifest, labels)
        self._recipe = recipe
        self._transforms = {stage.photo_px: _augmentation(recipe, stage.photo_px) for stage in recipe.stages}

    def __getitem__(self, draw: _Draw) -> Batch:
        # Enough pixels that the smallest crop still has the training size.
        at_least_px = int(draw.photo_px / self._recipe.smallest_crop**0.5)
        try:
            photo = decode_photo(self._bytes(draw.row), at_least_px=at_least_px)
        except (OSError, PhotoError) as error:
            raise self._named(draw.row, error) from error
        # The generator follows from what is drawn, not from who draws it: workers, restarts and their
        # number change nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self._recipe.seed, draw.epoch, draw.row))
            augmented = self._transforms[draw.photo_px](Image.fromarray(photo))
        return self._item(augmented.permute(1, 2, 0).contiguous().numpy(), draw.row)


class _EvaluationPhotos(_Photos):
    def __init__(self, manifest: Manifest, labels: Labels, preprocessing: Preprocessing) -> None:
        super().__init__(manifest, labels)
        self._preprocessing = preprocessing

    def __getitem__(self, row: int) -> Batch:
        try:
            return self._item(prepare_photo(self._bytes(row), self._preprocessing), row)
        except (OSError, PhotoError) as error:
            raise self._named(row, error) from error


class _Draws(Sampler[list[_Draw]]):
    """Batches of one run from `first_step` on: each epoch a permutation of all rows, its rest dropped."""

    def __init__(self, num_photos: int, recipe: Recipe, *, first_step: int) -> None:
        self._num_photos = num_photos
        self._recipe = recipe
        self._first_step = first_step
        self.steps_per_epoch = num_photos // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise RunError(
                f"{num_photos} training photos do not fill one batch of {recipe.batch_size}; lower batch_size"
            )
        self.num_steps = self.steps_per_epoch * recipe.num_epochs

    def __len__(self) -> int:
        return self.num_steps - self._first_step

    def __iter__(self) -> Iterator[list[_Draw]]:
        size = self._recipe.batch_size
        first_epoch, offset = divmod(self._first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self._recipe.num_epochs):
            order = np.random.default_rng([self._recipe.seed, epoch]).permutation(self._num_photos)
            photo_px = self._recipe.photo_px_of_epoch(epoch)
            for step in range(offset, self.steps_per_epoch):
                rows = order[step * size : (step + 1) * size]
                yield [_Draw(int(row), epoch, photo_px) for row in rows]
            offset = 0


def training_batches(
    manifest: Manifest, labels: Labels, recipe: Recipe, *, first_step: int, num_workers: int
) -> tuple[DataLoader[Batch], int]:
    """A loader of the run's augmented batches from `first_step` on, and the number of steps in an epoch."""
    draws = _Draws(len(manifest), recipe, first_step=first_step)
    loader = DataLoader(
        _TrainingPhotos(manifest, labels, recipe),
        batch_sampler=draws,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )
    return loader, draws.steps_per_epoch


def evaluation_batches(
    manifest: Manifest, labels: Labels, preprocessing: Preprocessing, *, batch_size: int, num_workers: int
) -> DataLoader[Batch]:
    """Every photo once, in the manifest's order, prepared as serving prepares it."""
    return DataLoader(
        _EvaluationPhotos(manifest, labels, preprocessing),
        sampler=range(len(manifest)),
        batch_size=batch_size,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _augmentation(recipe: Recipe, photo_px: int) -> v2.Transform:
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(
            photo_px, scale=(recipe.smallest_crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        ),
        v2.RandomHorizontalFlip(recipe.flip_probability),
    ]
    if recipe.trivial_augment:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=[127, 127, 127]))
    steps.append(v2.PILToTensor())
    if recipe.erasing_probability:
        steps.append(v2.RandomErasing(recipe.erasing_probability, scale=(0.02, 0.2), value=127))
    return v2.Compose(steps)


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def _quiet_worker(worker: int) -> None:
    # A terminal's Ctrl-C and a scheduler's SIGTERM reach the whole process group; workers that die of
    # them take the batch that the main process still needs for its last checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
