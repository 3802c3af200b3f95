"""From a manifest to batches of uint8 photos, in an order that a resumed run repeats exactly."""

import json
import logging
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from training.errors import RunError
from training.recipe import Recipe
from training.trainer.augmentation import crop_of, distortion_of
from training.trainer.sampler import Draw, Draws
from vision.errors import DeviceCannotDecode, PhotoError
from vision.images import Preprocessing, decode_photo, prepare_photo
from vision.images.gpu_decoding import Box, DeviceCrop, DeviceDecoder, find_plain_crop
from vision.manifest import Labels, Manifest, read_photo

__all__ = ["Batch", "FeaturesBySize", "evaluation_batches", "training_batches"]

_log = logging.getLogger(__name__)

FeaturesBySize = Mapping[int, npt.NDArray[np.float32]]
"""(num_photos, D) by `photo_px`."""

_REPLACEMENTS_TRIED = 10

_PHOTOS_JUDGED = 2000
"""After so many it is said whether decoding on the device is of use."""


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
        return read_photo(self._manifest.photo_url(row))


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
            return self._item(self._photo(draw, self._bytes(draw.row)), draw.row, seed=draw.seed)
        except (OSError, PhotoError) as error:
            return self._replacement(draw, error)

    def undecoded(self, draw: Draw) -> "_Undecoded":
        """The same, with a plain JPEG's bytes in the place of its pixels."""
        if self._recipe.stage_of_epoch(draw.epoch).trains == "heads_on_features":
            return _Undecoded(self[draw], draw, None, b"")
        try:
            data = self._bytes(draw.row)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(draw.seed)
                random_crop = self._crops[draw.photo_px]
                crop = find_plain_crop(
                    data,
                    at_least_px=self._at_least_px(draw),
                    box_of=lambda photo: Box(**random_crop.make_params([photo])),
                )
            if crop:
                return _Undecoded(self._item(torch.empty(0), draw.row, seed=draw.seed), draw, crop, data)
            item = self._item(self._photo(draw, data), draw.row, seed=draw.seed)
        except (OSError, PhotoError) as error:
            item = self._replacement(draw, error)
        return _Undecoded(item, draw, None, b"")

    def _at_least_px(self, draw: Draw) -> int:
        """Enough pixels that the smallest crop still has the training size."""
        return int(draw.photo_px / self._recipe.smallest_crop**0.5)

    def _photo(self, draw: Draw, data: bytes) -> torch.Tensor:
        photo = Image.fromarray(decode_photo(data, at_least_px=self._at_least_px(draw)))
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
                photo = self._photo(draw, self._bytes(int(row)))
            except (OSError, PhotoError):
                continue
            problem = self._problem(draw.row, error, epoch=draw.epoch + 1, replaced_by_row=int(row) + 1)
            return self._item(photo, int(row), seed=draw.seed, problem=problem)
        raise RunError(
            f"photo {self._manifest.photo_url(draw.row)} cannot be used ({error}), nor can {_REPLACEMENTS_TRIED} "
            "others drawn in its place; run `listing-vision data check` to find all of them"
        ) from error


class _Undecoded(NamedTuple):
    item: _Item
    """Its photo is empty where there is a crop."""
    draw: Draw
    crop: DeviceCrop | None
    encoded: bytes


class _UndecodedBatch(NamedTuple):
    batch: Batch
    """Its photos are those without a crop."""
    draws: list[Draw]
    crops: list[DeviceCrop | None]
    encoded: torch.Tensor
    """(num_bytes,) uint8: all files one after the other, for a tensor each would be an open file each."""


class _UndecodedPhotos(Dataset[_Undecoded]):
    def __init__(self, photos: _TrainingPhotos) -> None:
        self._photos = photos

    def __getitem__(self, draw: Draw) -> _Undecoded:
        return self._photos.undecoded(draw)


class _DecodedBatches:
    """Batches whose plain JPEGs were decoded on the device; what it refuses is left to Pillow here, as in a worker."""

    def __init__(
        self, batches: Iterable[_UndecodedBatch], photos: _TrainingPhotos, manifest: Manifest, device: torch.device
    ) -> None:
        self._batches, self._photos, self._manifest, self._device = batches, photos, manifest, device
        try:
            self._decoder = DeviceDecoder(device)
        except DeviceCannotDecode as error:
            raise RunError(f"decode_on = 'device': {error}; use --decode-on loader") from error

    def __iter__(self) -> Iterator[Batch]:
        num_photos = num_decoded = 0
        for undecoded in self._batches:
            batch, num_on_device = self._decoded(undecoded)
            before, num_photos = num_photos, num_photos + len(undecoded.crops)
            num_decoded += num_on_device
            if before < _PHOTOS_JUDGED <= num_photos and num_decoded < num_photos / 2:
                _log.warning(
                    "only %d of the first %d photos could be decoded on %s (docs/training.md says which can); "
                    "--decode-on loader serves the others better",
                    *(num_decoded, num_photos, self._device),
                )
            yield batch

    def _decoded(self, undecoded: _UndecodedBatch) -> tuple[Batch, int]:
        """The batch, and how many of its photos the device decoded."""
        batch, draws, crops, encoded = undecoded
        num_crops = sum(crop is not None for crop in crops)
        if not num_crops:
            return batch, 0
        try:
            photos, refused = self._decoder.photos(encoded, crops, batch.photos_nhwc, photo_px=draws[0].photo_px)
        except torch.AcceleratorError as error:
            named = ", ".join(self._manifest.photo_url(draw.row) for draw in draws[:4])
            raise RunError(
                f"{self._device} failed while it decoded {num_crops} photos ({named}, …): "
                f"{str(error).splitlines()[0]}; the last checkpoint is unharmed, and --decode-on loader goes on from it"
            ) from error
        batch = batch._replace(photos_nhwc=photos)
        for index in refused:
            self._redo(batch, index, draws[index])
        return batch, num_crops - len(refused)

    def _redo(self, batch: Batch, index: int, draw: Draw) -> None:
        _log.debug("%s was refused by %s", self._manifest.photo_url(draw.row), self._device)
        item = self._photos[draw]
        batch.photos_nhwc[index] = item.photo.to(self._device)
        batch.category_nodes[index], batch.brands[index] = item.category_node, item.brand
        batch.rows[index] = item.row
        batch.problems[index] = item.problem


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
    decode_on: torch.device | None = None,
    features: FeaturesBySize | None = None,
) -> Iterable[Batch]:
    """What is drawn; a photo that cannot be used is replaced and reported in `problems`.

    Args:
        manifest: the training rows.
        labels: of the manifest.
        recipe: sizes and augmentation.
        draws: which rows, in which batches.
        num_workers: loader processes; 0 loads in this one.
        only_crop: leave flips, colours and erasing to `distort_batch`.
        decode_on: where plain JPEGs are decoded, with `only_crop`; the loader's processes then read them and leave them
            as they are. Default: there too.
        features: of all rows, by photo size, where the recipe has stages that train heads_on_features.

    Raises:
        RunError: `decode_on` cannot decode.
    """
    assert only_crop or decode_on is None
    photos = _TrainingPhotos(manifest, labels, recipe, features or {}, only_crop=only_crop)
    loader: DataLoader[Any] = DataLoader(
        _UndecodedPhotos(photos) if decode_on else photos,  # draws are its keys
        batch_sampler=draws,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        collate_fn=_collated_undecoded if decode_on else _collated,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=4 if num_workers else None,
    )
    return _DecodedBatches(loader, photos, manifest, decode_on) if decode_on else loader


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


def _collated_undecoded(loaded: list[_Undecoded]) -> _UndecodedBatch:
    pixels = [one.item.photo for one in loaded if not one.crop]
    batch = _collated([one.item._replace(photo=torch.empty(0)) for one in loaded])
    encoded = b"".join(one.encoded for one in loaded)
    return _UndecodedBatch(
        batch._replace(photos_nhwc=torch.stack(pixels) if pixels else torch.empty(0, 0, 0, 3, dtype=torch.uint8)),
        [one.draw for one in loaded],
        [one.crop for one in loaded],
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else torch.empty(0, dtype=torch.uint8),
    )


def _quiet_worker(worker: int) -> None:
    # A terminal's Ctrl-C and a scheduler's signals reach the whole process group; workers that die of
    # them take the batch that the main process still needs for its last checkpoint.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
