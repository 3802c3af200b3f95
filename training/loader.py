"""From a manifest to batches of uint8 photos, in an order that a resumed run repeats exactly."""

import json
import signal
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from training.augmentation import crop_of, distortion_of
from training.recipe import Recipe
from training.sampling import Draw, Draws
from vision.errors import PhotoError, RunError
from vision.images import Preprocessing, decode_photo, prepare_photo
from vision.manifest import Labels, Manifest, photo_bytes

__all__ = ["Batch", "FeaturesBySize", "evaluation_batches", "training_batches"]

FeaturesBySize = Mapping[int, npt.NDArray[np.float32]]
"""(num_photos, D) by `photo_px`."""

_REPLACEMENTS_TRIED = 10


class Batch(NamedTuple):
    photos_nhwc: torch.Tensor
    """(N, H, W, 3) uint8; in a stage that trains heads_on_features the (N, D) float32 features instead."""
    category_nodes: torch.Tensor
    """(N,) int64; -1 where missing."""
    brands: torch.Tensor
    """(N,) int64; -1 where missing."""
    rows: torch.Tensor
    """(N,) int64 rows of the manifest, to name a batch by."""
    seeds: torch.Tensor
    """(N,) int64: what each photo's random changes follow from; 0 in evaluation."""
    problems: list[str]
    """N texts: JSON about a photo that could not be used, else empty. In training another one stands in its place; in
    evaluation it is black and without labels."""


class _Item(NamedTuple):
    photo: torch.Tensor
    category_node: torch.Tensor
    brand: torch.Tensor
    row: torch.Tensor
    seed: torch.Tensor
    problem: str


class _Photos(Dataset[_Item]):
    def __init__(self, manifest: Manifest, labels: Labels) -> None:
        self._manifest = manifest
        self._labels = labels

    def _item(self, photo: torch.Tensor, row: int, *, seed: int = 0, problem: str = "") -> _Item:
        labels = self._labels
        return _Item(
            photo,
            torch.tensor(labels.category_nodes[row]),
            torch.tensor(labels.brands[row]),
            torch.tensor(row),
            torch.tensor(seed),
            problem,
        )

    def _problem(self, row: int, error: Exception, **more: int) -> str:
        reason = error.reason if isinstance(error, PhotoError) else "PHOTO_MISSING"
        told = {"row": row + 1, "photo": self._manifest.photo_url(row), "reason": reason, "message": str(error), **more}
        return json.dumps(told, ensure_ascii=False)

    def _bytes(self, row: int) -> bytes:
        return photo_bytes(self._manifest.photo_url(row))


class _TrainingPhotos(_Photos):
    def __init__(
        self, manifest: Manifest, labels: Labels, recipe: Recipe, features: FeaturesBySize, *, only_crop: bool
    ) -> None:
        super().__init__(manifest, labels)
        self._features = features
        self._recipe = recipe
        self._crops = {stage.photo_px: crop_of(recipe, stage.photo_px) for stage in recipe.stages}
        self._distortion = None if only_crop else distortion_of(recipe)

    def __getitem__(self, draw: Draw) -> _Item:
        if self._recipe.stage_of_epoch(draw.epoch).trains == "heads_on_features":
            return self._item(torch.from_numpy(self._features[draw.photo_px][draw.row].copy()), draw.row)
        try:
            return self._item(self._photo(draw), draw.row, seed=draw.seed)
        except (OSError, PhotoError) as error:
            return self._replacement(draw, error)

    def _photo(self, draw: Draw) -> torch.Tensor:
        # Enough pixels that the smallest crop still has the training size.
        at_least_px = int(draw.photo_px / self._recipe.smallest_crop**0.5)
        photo = Image.fromarray(decode_photo(self._bytes(draw.row), at_least_px=at_least_px))
        # The generator follows from what is drawn, not from who draws it: workers, restarts and their
        # number change nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            cropped = self._crops[draw.photo_px](photo)
            if self._distortion is None:
                return torch.from_numpy(np.array(cropped))
            distorted: torch.Tensor = self._distortion(cropped)
            return distorted.permute(1, 2, 0).contiguous()

    def _replacement(self, draw: Draw, error: Exception) -> _Item:
        """Another photo with its own labels in the place of one that cannot be used."""
        random = np.random.default_rng(draw.seed)
        for row in random.integers(len(self._manifest), size=_REPLACEMENTS_TRIED):
            try:
                photo = self._photo(draw._replace(row=int(row)))
            except (OSError, PhotoError):
                continue
            problem = self._problem(draw.row, error, epoch=draw.epoch + 1, replaced_by_row=int(row) + 1)
            return self._item(photo, int(row), seed=draw.seed, problem=problem)
        raise RunError(
            f"photo {self._manifest.photo_url(draw.row)} cannot be used ({error}), nor can {_REPLACEMENTS_TRIED} "
            "others drawn in its place; run `listing-vision data check` to find all of them"
        ) from error


class _EvaluationPhotos(_Photos):
    def __init__(self, manifest: Manifest, labels: Labels, preprocessing: Preprocessing) -> None:
        super().__init__(manifest, labels)
        self._preprocessing = preprocessing

    def __getitem__(self, row: int) -> _Item:
        try:
            photo = torch.from_numpy(prepare_photo(self._bytes(row), self._preprocessing))
        except (OSError, PhotoError) as error:
            side = self._preprocessing.input_px
            black = self._item(torch.zeros(side, side, 3, dtype=torch.uint8), row, problem=self._problem(row, error))
            missing = torch.tensor(-1)
            return black._replace(category_node=missing, brand=missing)
        return self._item(photo, row)


def training_batches(
    manifest: Manifest,
    labels: Labels,
    recipe: Recipe,
    draws: Draws,
    *,
    num_workers: int,
    only_crop: bool = False,
    features: FeaturesBySize | None = None,
) -> DataLoader[Batch]:
    """A loader of what is drawn; a photo that cannot be used is replaced and reported in `problems`.

    Args:
        manifest: the training rows.
        labels: of the manifest.
        recipe: sizes and augmentation.
        draws: which rows, in which batches.
        num_workers: loader processes; 0 loads in this one.
        only_crop: leave flips, colours and erasing to `distort_batch`.
        features: of all rows, by photo size, where the recipe has stages that train heads_on_features.
    """
    return DataLoader(
        _TrainingPhotos(manifest, labels, recipe, features or {}, only_crop=only_crop),  # type: ignore[arg-type]  # draws are its keys, batches its collated items
        batch_sampler=draws,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        collate_fn=_collated,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=4 if num_workers else None,
    )


def evaluation_batches(
    manifest: Manifest,
    labels: Labels,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    rows: range | None = None,
) -> DataLoader[Batch]:
    """Every photo (or those of `rows`) once, in the manifest's order, prepared as serving prepares it."""
    sampler: range | Sampler[int] = range(len(manifest)) if rows is None else rows
    return DataLoader(
        _EvaluationPhotos(manifest, labels, preprocessing),  # type: ignore[arg-type]  # as above
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        collate_fn=_collated,
        pin_memory=torch.cuda.is_available(),
    )


def _collated(items: list[_Item]) -> Batch:
    return Batch(
        torch.stack([item.photo for item in items]),
        torch.stack([item.category_node for item in items]),
        torch.stack([item.brand for item in items]),
        torch.stack([item.row for item in items]),
        torch.stack([item.seed for item in items]),
        [item.problem for item in items],
    )


def _quiet_worker(worker: int) -> None:
    # A terminal's Ctrl-C and a scheduler's signals reach the whole process group; workers that die of
    # them take the batch that the main process still needs for its last checkpoint.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
