"""From a manifest to batches of uint8 photos, in an order that a resumed run repeats exactly."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from training.errors import RunError
from training.inference.features import load_features
from training.recipe import Recipe
from training.trainer.loading.augmentation import create_crop, create_distortion
from training.trainer.loading.processes import LOADER_CONTEXT, LoaderStart, SharedTable
from training.trainer.loading.sampler import PhotoSample, ResumableBatchSampler
from vision.errors import DeviceDecoderUnavailable, PhotoError
from vision.images import Preprocessing, decode_photo, prepare_photo
from vision.images.gpu_decoding import Box, DeviceCrop, DeviceDecoder, find_plain_crop
from vision.manifest import Labels, Manifest
from vision.photo_files import read_photo_with_retries, resolve_photo_url

__all__ = ["Batch", "FeaturesBySize", "create_evaluation_batches", "create_training_batches"]

_log = logging.getLogger(__name__)

FeaturesBySize = Mapping[int, Path]
"""Folders of `training.inference.features.load_features` with every row, by `photo_px`."""

_MAX_REPLACEMENT_ATTEMPTS = 10

PHOTOS_BEFORE_WARNING = 2000
"""After this many photos a warning is logged if the device could decode fewer than half of them."""


class Batch(NamedTuple):
    photos_nhwc: torch.Tensor
    """(N, H, W, 3) uint8; in a stage that trains heads_on_features the (N, D) float32 features instead."""
    category_nodes: torch.Tensor
    """(N,) int64; -1 where missing."""
    brands: torch.Tensor
    """(N,) int64; -1 where missing."""
    rows: torch.Tensor
    """(N,) int64 rows of the manifest."""
    seeds: torch.Tensor
    """(N,) int64 seed of each photo's random changes; 0 in evaluation."""
    problems: list[str]
    """N texts: JSON about a photo that could not be used, else empty. In training it is replaced by another photo; in
    evaluation by a black one without labels."""


class _Item(NamedTuple):
    photo: torch.Tensor
    category_node: torch.Tensor
    brand: torch.Tensor
    row: torch.Tensor
    seed: torch.Tensor
    problem: str


class _Photos(Dataset[_Item]):
    def __init__(self, manifest: Manifest, labels: Labels) -> None:
        self._base_url = manifest.base_url
        self._shared = SharedTable(
            pa.table(
                {
                    "photo": manifest.column("photo"),
                    "category_node": pa.array(labels.category_nodes),
                    "brand": pa.array(labels.brands),
                }
            )
        )

    def __len__(self) -> int:
        return int(self._shared.table.num_rows)

    def get_photo_url(self, row: int) -> str:
        return resolve_photo_url(self._base_url, str(self._get("photo", row)))

    def _get(self, column: str, row: int) -> object:
        return self._shared.table.column(column)[row].as_py()

    def _create_item(self, photo: torch.Tensor, row: int, *, seed: int = 0, problem: str = "") -> _Item:
        return _Item(
            photo,
            torch.tensor(self._get("category_node", row)),
            torch.tensor(self._get("brand", row)),
            torch.tensor(row),
            torch.tensor(seed),
            problem,
        )

    def _describe_problem(self, row: int, error: Exception, **more: int) -> str:
        reason = error.reason if isinstance(error, PhotoError) else "PHOTO_MISSING"
        details = {
            "row": row + 1,
            "photo": self.get_photo_url(row),
            "reason": reason,
            "message": str(error),
            **more,
        }
        return json.dumps(details, ensure_ascii=False)

    def _read(self, row: int) -> bytes:
        return read_photo_with_retries(self.get_photo_url(row))


class _TrainingPhotos(_Photos):
    def __init__(
        self, manifest: Manifest, labels: Labels, recipe: Recipe, features: FeaturesBySize, *, only_crop: bool
    ) -> None:
        super().__init__(manifest, labels)
        self._features = features
        self._opened: dict[int, npt.NDArray[np.float32]] = {}
        self._recipe = recipe
        self._crops = {stage.photo_px: create_crop(recipe, stage.photo_px) for stage in recipe.stages}
        self._distortion = None if only_crop else create_distortion(recipe)

    def __getitem__(self, sample: PhotoSample) -> _Item:
        if self._recipe.stage_of_epoch(sample.epoch).trains == "heads_on_features":
            return self._create_item(self._read_features(sample), sample.row)
        try:
            return self._create_item(self._load_photo(sample, self._read(sample.row)), sample.row, seed=sample.seed)
        except (OSError, PhotoError) as error:
            return self._load_replacement(sample, error)

    def _read_features(self, sample: PhotoSample) -> torch.Tensor:
        if sample.photo_px not in self._opened:
            self._opened[sample.photo_px] = load_features(self._features[sample.photo_px]).values
        return torch.from_numpy(self._opened[sample.photo_px][sample.row].copy())

    def load_encoded(self, sample: PhotoSample) -> "_EncodedItem":
        """The sample with the bytes of a plain JPEG instead of its pixels; other photos are decoded here."""
        if self._recipe.stage_of_epoch(sample.epoch).trains == "heads_on_features":
            return _EncodedItem(self[sample], sample, None, b"")
        try:
            data = self._read(sample.row)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sample.seed)
                random_crop = self._crops[sample.photo_px]
                crop = find_plain_crop(
                    data,
                    at_least_px=self._compute_min_decode_px(sample),
                    choose_box=lambda photo: Box(**random_crop.make_params([photo])),
                )
            if crop:
                return _EncodedItem(self._create_item(torch.empty(0), sample.row, seed=sample.seed), sample, crop, data)
            item = self._create_item(self._load_photo(sample, data), sample.row, seed=sample.seed)
        except (OSError, PhotoError) as error:
            item = self._load_replacement(sample, error)
        return _EncodedItem(item, sample, None, b"")

    def _compute_min_decode_px(self, sample: PhotoSample) -> int:
        """Side at which even the smallest crop has at least the training size."""
        return int(sample.photo_px / self._recipe.smallest_crop**0.5)

    def _load_photo(self, sample: PhotoSample, data: bytes) -> torch.Tensor:
        photo = Image.fromarray(decode_photo(data, at_least_px=self._compute_min_decode_px(sample)))
        # The generator follows from the sample, not from the process that loads it: the number of workers
        # and restarts change nothing.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sample.seed)
            cropped = self._crops[sample.photo_px](photo)
            if self._distortion is None:
                return torch.from_numpy(np.array(cropped))
            distorted: torch.Tensor = self._distortion(cropped)
            return distorted.permute(1, 2, 0).contiguous()

    def _load_replacement(self, sample: PhotoSample, error: Exception) -> _Item:
        """A random other photo with its own labels, in place of one that cannot be used."""
        random = np.random.default_rng(sample.seed)
        for row in random.integers(len(self), size=_MAX_REPLACEMENT_ATTEMPTS):
            try:
                photo = self._load_photo(sample, self._read(int(row)))
            except (OSError, PhotoError):
                continue
            problem = self._describe_problem(sample.row, error, epoch=sample.epoch + 1, replaced_by_row=int(row) + 1)
            return self._create_item(photo, int(row), seed=sample.seed, problem=problem)
        raise RunError(
            f"photo {self.get_photo_url(sample.row)} cannot be used ({error}), nor can "
            f"{_MAX_REPLACEMENT_ATTEMPTS} other photos tried instead; `listing-vision data check` finds all of them"
        ) from error


class _EncodedItem(NamedTuple):
    item: _Item
    """Its photo is empty if `crop` is given."""
    sample: PhotoSample
    crop: DeviceCrop | None
    encoded: bytes


class _EncodedBatch(NamedTuple):
    batch: Batch
    """Its photos are the ones without a crop."""
    samples: list[PhotoSample]
    crops: list[DeviceCrop | None]
    encoded: torch.Tensor
    """(num_bytes,) uint8: all files concatenated, because workers pass each tensor as an open file."""


class _EncodedPhotos(Dataset[_EncodedItem]):
    def __init__(self, photos: _TrainingPhotos) -> None:
        self._photos = photos

    def __getitem__(self, sample: PhotoSample) -> _EncodedItem:
        return self._photos.load_encoded(sample)


class _DeviceDecodedBatches:
    """Batches whose plain JPEGs are decoded on the device. Photos that it refuses are decoded by Pillow in this
    process."""

    def __init__(self, batches: Iterable[_EncodedBatch], photos: _TrainingPhotos, device: torch.device) -> None:
        self._batches, self._photos, self._device = batches, photos, device
        try:
            self._decoder = DeviceDecoder(device)
        except DeviceDecoderUnavailable as error:
            raise RunError(f"decode_on = 'device': {error}; use --decode-on loader") from error
        _log.info("plain JPEGs are decoded on %s by %s", device, self._decoder.decodes_with)

    def __iter__(self) -> Iterator[Batch]:
        num_photos = num_decoded = 0
        for encoded_batch in self._batches:
            batch, num_on_device = self._decode(encoded_batch)
            before, num_photos = num_photos, num_photos + len(encoded_batch.crops)
            num_decoded += num_on_device
            if before < PHOTOS_BEFORE_WARNING <= num_photos and num_decoded < num_photos / 2:
                _log.warning(
                    "only %d of the first %d photos could be decoded on %s (docs/training.md says which can); "
                    "use --decode-on loader",
                    *(num_decoded, num_photos, self._device),
                )
            yield batch

    def _decode(self, encoded_batch: _EncodedBatch) -> tuple[Batch, int]:
        """The batch, and how many of its photos the device decoded."""
        batch, samples, crops, encoded = encoded_batch
        num_crops = sum(crop is not None for crop in crops)
        if not num_crops:
            return batch, 0
        try:
            photos, refused = self._decoder.decode_crops(
                encoded, crops, batch.photos_nhwc, photo_px=samples[0].photo_px
            )
        except torch.AcceleratorError as error:
            named = ", ".join(self._photos.get_photo_url(sample.row) for sample in samples[:4])
            raise RunError(
                f"{self._device} failed while it decoded {num_crops} photos ({named}, …): "
                f"{str(error).splitlines()[0]}; the last checkpoint is intact; repeat the command with"
                " --decode-on loader to resume from it"
            ) from error
        batch = batch._replace(photos_nhwc=photos)
        for index in refused:
            self._decode_on_cpu(batch, index, samples[index])
        return batch, num_crops - len(refused)

    def _decode_on_cpu(self, batch: Batch, index: int, sample: PhotoSample) -> None:
        _log.debug("%s was refused by %s", self._photos.get_photo_url(sample.row), self._device)
        item = self._photos[sample]
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
            photo = torch.from_numpy(prepare_photo(self._read(row), self._preprocessing))
        except (OSError, PhotoError) as error:
            side = self._preprocessing.input_px
            black = self._create_item(
                torch.zeros(side, side, 3, dtype=torch.uint8), row, problem=self._describe_problem(row, error)
            )
            missing = torch.tensor(-1)
            return black._replace(category_node=missing, brand=missing)
        return self._create_item(photo, row)


def create_training_batches(
    manifest: Manifest,
    labels: Labels,
    recipe: Recipe,
    sampler: ResumableBatchSampler,
    *,
    num_workers: int,
    only_crop: bool = False,
    decode_on: torch.device | None = None,
    features: FeaturesBySize | None = None,
) -> Iterable[Batch]:
    """The sampler's batches. A photo that cannot be used is replaced and reported in `problems`.

    Args:
        manifest: the training rows.
        labels: labels of these rows.
        recipe: photo sizes and augmentation.
        sampler: which rows, in which batches.
        num_workers: loader processes; 0 loads in this one.
        only_crop: leave flips, colours and erasing to `distort_batch` on the device.
        decode_on: device that decodes plain JPEGs; needs `only_crop`. Default: the loader's processes decode all
        photos.
        features: features of all rows by photo size, for stages that train heads_on_features.

    Raises:
        RunError: the device `decode_on` has no JPEG decoder.
    """
    assert only_crop or decode_on is None
    photos = _TrainingPhotos(manifest, labels, recipe, features or {}, only_crop=only_crop)
    loader: DataLoader[Any] = DataLoader(
        _EncodedPhotos(photos) if decode_on else photos,  # its keys are samples
        batch_sampler=sampler,
        num_workers=num_workers,
        multiprocessing_context=LOADER_CONTEXT if num_workers else None,
        worker_init_fn=LoaderStart(),
        collate_fn=_collate_encoded if decode_on else _collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=4 if num_workers else None,
    )
    return _DeviceDecodedBatches(loader, photos, decode_on) if decode_on else loader


def create_evaluation_batches(
    manifest: Manifest,
    labels: Labels,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    rows: range | None = None,
) -> DataLoader[Batch]:
    """Every photo (or those of `rows`) once, in the manifest's order, preprocessed as in serving."""
    sampler: range | Sampler[int] = range(len(manifest)) if rows is None else rows
    return DataLoader(
        _EvaluationPhotos(manifest, labels, preprocessing),  # type: ignore[arg-type]  # as above
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        multiprocessing_context=LOADER_CONTEXT if num_workers else None,
        worker_init_fn=LoaderStart(),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(items: list[_Item]) -> Batch:
    return Batch(
        torch.stack([item.photo for item in items]),
        torch.stack([item.category_node for item in items]),
        torch.stack([item.brand for item in items]),
        torch.stack([item.row for item in items]),
        torch.stack([item.seed for item in items]),
        [item.problem for item in items],
    )


def _collate_encoded(loaded: list[_EncodedItem]) -> _EncodedBatch:
    pixels = [one.item.photo for one in loaded if not one.crop]
    batch = _collate([one.item._replace(photo=torch.empty(0)) for one in loaded])
    encoded = b"".join(one.encoded for one in loaded)
    return _EncodedBatch(
        batch._replace(photos_nhwc=torch.stack(pixels) if pixels else torch.empty(0, 0, 0, 3, dtype=torch.uint8)),
        [one.sample for one in loaded],
        [one.crop for one in loaded],
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else torch.empty(0, dtype=torch.uint8),
    )
