"""Which photos make up which step, as a function of the seed and the step alone: resuming needs no other state."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from torch.utils.data import Sampler

from training.errors import RunError
from training.recipe import Recipe
from vision.manifest import Labels, Manifest

__all__ = ["PhotoSample", "ResumableBatchSampler", "compute_sampling_weights"]

_SHARDS_PER_WINDOW = 16
"""Shards whose photos are shuffled together: enough to mix, few enough to be read ahead or cached."""


class PhotoSample(NamedTuple):
    """One photo in one epoch of training: its row, its size and its random seed."""

    row: int
    epoch: int
    photo_px: int
    seed: int
    """Seed of its random changes."""


class ResumableBatchSampler(Sampler[list[PhotoSample]]):
    """One rank's micro-batches of a run, from `first_step` on.

    Each epoch is one permutation of all rows, the same on every rank, cut into steps of `batch_size` rows; some steps
    have one row more if the division leaves a remainder. Each rank has every world_size-th row of a step, so no photo
    comes twice or is left out, and the steps are the same for every number of ranks.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: Labels,
        recipe: Recipe,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self._num_photos = len(manifest)
        self._recipe = recipe
        self._first_step = first_step
        self._rank, self._world_size = rank, world_size
        self._shards = _find_shards(manifest)
        self._weights = compute_sampling_weights(labels.category_nodes, recipe.balanced_sampling)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self.steps_per_epoch = self._num_photos // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise RunError(
                f"{self._num_photos} training photos do not fill one batch of {recipe.batch_size}; lower batch_size"
            )
        smallest_share, largest_share = recipe.batch_size // world_size, -(-self._find_bounds(0)[1] // world_size)
        if smallest_share < 2:
            raise RunError(
                f"batch_size {recipe.batch_size} leaves {smallest_share} photos for each of {world_size} ranks, and "
                "batch norm needs 2; raise batch_size or use fewer ranks"
            )
        largest = max(2, micro_batch or largest_share)
        self.micro_batches_per_step = max(1, min(-(-largest_share // largest), smallest_share // 2))
        self.num_steps = self.steps_per_epoch * recipe.num_epochs

    def __len__(self) -> int:
        return (self.num_steps - self._first_step) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[PhotoSample]]:
        for step in range(self._first_step, self.num_steps):
            epoch = step // self.steps_per_epoch
            photo_px = self._recipe.stage_of_epoch(epoch).photo_px
            begin, end = self._find_bounds(step % self.steps_per_epoch)
            share = np.arange(begin, end)[self._rank :: self._world_size]
            order = self._shuffle_epoch(epoch)
            for positions in np.array_split(share, self.micro_batches_per_step):
                yield [
                    PhotoSample(int(order[at]), epoch, photo_px, _derive_seed(self._recipe.seed, epoch, int(at)))
                    for at in positions
                ]

    def get_step_rows(self, step: int) -> npt.NDArray[np.int64]:
        """(N,) int64 rows of all ranks."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        begin, end = self._find_bounds(step_of_epoch)
        return self._shuffle_epoch(epoch)[begin:end]

    def _find_bounds(self, step_of_epoch: int) -> tuple[int, int]:
        """Where a step begins and ends in the epoch's order; the first steps are the larger ones."""
        size, larger = divmod(self._num_photos, self.steps_per_epoch)
        begin = step_of_epoch * size + min(step_of_epoch, larger)
        return begin, begin + size + (step_of_epoch < larger)

    def _shuffle_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            random = np.random.default_rng([self._recipe.seed, epoch])
            if self._weights is not None:
                order = random.choice(self._num_photos, size=self._num_photos, p=self._weights)
            elif self._shards is not None:
                order = _shuffle_by_shard(self._shards, random)
            else:
                order = random.permutation(self._num_photos)
            # The data loader is at most an epoch ahead of the steps.
            self._orders = {other: rows for other, rows in self._orders.items() if other == epoch - 1} | {epoch: order}
        return self._orders[epoch]


def _derive_seed(*parts: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def _find_shards(manifest: Manifest) -> npt.NDArray[np.int64] | None:
    """(num_photos,) number of each row's tar shard; None if the photos are separate files."""
    photos = manifest.column("photo")
    if ".tar#" not in str(photos[0].as_py()) or not pa.compute.all(pa.compute.match_substring(photos, ".tar#")).as_py():
        return None
    shards = pa.compute.replace_substring_regex(photos, r"#.*$", "")
    encoded = shards.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices, dtype=np.int64)


def _shuffle_by_shard(shards: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """All rows, a few shards at a time, so that only these shards are read at once."""
    order = np.arange(len(shards))
    windows = random.permutation(int(shards.max()) + 1)[shards] // _SHARDS_PER_WINDOW
    random.shuffle(order)
    return order[np.argsort(windows[order], kind="stable")]


def compute_sampling_weights(nodes: npt.NDArray[np.int64], power: float) -> npt.NDArray[np.float64] | None:
    """(num_photos,) sampling probabilities; a photo without a category counts as one of an average class.

    None if every photo is sampled once per epoch.
    """
    if power == 0:
        return None
    counts = np.bincount(nodes[nodes >= 0], minlength=1).astype(np.float64)
    per_class = np.where(counts > 0, np.maximum(counts, 1) ** -power, 0)
    weights = np.where(nodes >= 0, per_class[nodes], 0)
    labelled = nodes >= 0
    weights[~labelled] = weights[labelled].mean() if labelled.any() else 1.0
    return np.asarray(weights / weights.sum())
