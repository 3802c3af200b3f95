"""Embeddings of the photos of a manifest by a frozen backbone, kept in a cache on disk. Torch is imported on use."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.inference.predictions import iterate_photos
from vision.errors import ListingVisionError, ManifestError
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.runtime.files import replace_file
from vision.runtime.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from vision.model import ListingClassifier

__all__ = [
    "DEFAULT_BACKBONE",
    "FeatureExtraction",
    "Features",
    "extract_features",
    "load_embedder",
    "load_features",
]

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
DEFAULT_INPUT_PX = 224

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the P usable photos of a manifest, in its order."""

    values: npt.NDArray[np.float32]
    """(P, D); read-only and memory-mapped where they come from a cache."""
    rows: Ints
    """(P,) rows of the manifest, counted from 0."""
    unusable: tuple[str, ...]
    """What was wrong with each photo that is not among the P."""


def extract_features(
    model: "nn.Module",
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    cache: Path | None = None,
) -> Features:
    """The embeddings of all usable photos.

    Args:
        model: a `ListingClassifier`, or a backbone with timm's `pretrained_cfg`; it is left on `device` and in
            evaluation mode.
        cache: a folder that keeps the features. They are taken from it where the photo paths, the preprocessing and
            the backbone's weights are the same, whatever the labels are now; a photo replaced under its old path is
            not noticed, nor one that has become readable since. Interrupted, the same call resumes.

    Raises:
        ManifestError: no photo can be used.
    """
    if cache is None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            found = extract_features(model, manifest, preprocessing, batch_size=batch_size, device=device, cache=folder)
            return Features(values=np.array(found.values), rows=found.rows, unusable=found.unusable)
    extraction = FeatureExtraction(model, manifest, preprocessing, cache=cache, batch_size=batch_size, device=device)
    missing = extraction.list_missing()
    with Progress("features", len(manifest), done=len(manifest) - extraction.count_photos(missing)) as progress:
        for count in extraction.extract(missing):
            progress.advance(count)
    return extraction.combine()


class FeatureExtraction:
    """Features of a manifest in parts of a batch each, saved one by one: what is interrupted can be resumed.

    Several processes may share the parts of one cache among them.
    """

    def __init__(
        self,
        model: "nn.Module",
        manifest: Manifest,
        preprocessing: Preprocessing,
        *,
        cache: Path,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        self._embedder = _create_embedder(model)
        self._manifest, self._preprocessing = manifest, preprocessing
        self._device = device
        self._starts = range(0, len(manifest), batch_size)
        key = _cache_key(self._embedder, manifest, preprocessing)
        self.folder = cache / key
        """Where `combine` puts the features."""
        self._parts = cache / f"{key}.{batch_size}.parts"

    def list_missing(self) -> list[int]:
        """First rows of the parts that are not saved yet."""
        if self.folder.is_dir():
            return []
        return [start for start in self._starts if not self._get_path(start).is_file()]

    def count_photos(self, starts: Sequence[int]) -> int:
        """Photos of these parts."""
        return sum(len(self._get_rows(start)) for start in starts)

    def _get_rows(self, start: int) -> range:
        return range(start, min(start + self._starts.step, len(self._manifest)))

    def extract(self, starts: Sequence[int]) -> Generator[int]:
        """Make and save these parts; yield the number of photos of each one saved."""
        import torch

        embedder = self._embedder.to(self._device).eval()
        if starts:
            self._parts.mkdir(parents=True, exist_ok=True)
        unusable: list[str] = []
        batches = [self._get_rows(start) for start in starts]
        photos_of = iterate_photos(self._manifest, self._preprocessing, batches, unusable=unusable)
        for batch, (rows, photos_nhwc) in zip(batches, photos_of, strict=True):
            with torch.inference_mode():
                embedding = embedder(torch.from_numpy(photos_nhwc).to(self._device)).embedding if rows else None
            values = np.empty((0, embedder.category_head.in_features)) if embedding is None else embedding.cpu().numpy()
            with replace_file(self._get_path(batch.start)) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    values=values.astype(np.float32),
                    rows=np.array(rows, dtype=np.int64),
                    unusable=np.array(json.dumps(unusable)),
                )
            unusable.clear()
            yield len(batch)

    def drop_unusable(self) -> tuple[str, ...]:
        """Remove the parts with photos that cannot be used, so that they are read again; return what was wrong."""
        found: list[str] = []
        for start in self._starts:
            if unusable := self._load(start)[2]:
                found += unusable
                self._get_path(start).unlink()
        return tuple(found)

    def combine(self) -> Features:
        """Join the parts, which must all be there.

        Raises:
            ManifestError: no photo can be used.
        """
        if not self.folder.is_dir():
            self._join_parts()
            shutil.rmtree(self._parts, ignore_errors=True)
        return load_features(self.folder)

    def _join_parts(self) -> None:
        with tempfile.TemporaryDirectory(
            dir=self.folder.parent, prefix="building-", ignore_cleanup_errors=True
        ) as temporary:
            building = Path(temporary) / "features"
            building.mkdir()
            # As long as the manifest; the features of usable photos stand at its head, the rest is a hole in the file.
            shape = (len(self._manifest), self._embedder.category_head.in_features)
            values = np.lib.format.open_memmap(building / "values.npy", mode="w+", dtype=np.float32, shape=shape)
            kept: list[int] = []
            unusable: list[str] = []
            for start in self._starts:
                part, rows, problems = self._load(start)
                values[len(kept) : len(kept) + len(rows)] = part
                kept += rows.tolist()
                unusable += problems
            if not kept:
                shutil.rmtree(self._parts)
                raise ManifestError("no photo of the manifest can be used:", unusable)
            values.flush()
            np.save(building / "rows.npy", np.array(kept, dtype=np.int64))
            (building / "unusable.json").write_text(json.dumps(unusable), encoding="utf-8")
            try:
                building.rename(self.folder)
            except OSError:  # another process made the same features meanwhile
                if not self.folder.is_dir():
                    raise

    def _get_path(self, start: int) -> Path:
        return self._parts / f"{start:010d}.npz"

    def _load(self, start: int) -> tuple[npt.NDArray[np.float32], Ints, list[str]]:
        with np.load(self._get_path(start)) as part:
            return part["values"], part["rows"], json.loads(str(part["unusable"]))


def load_features(folder: Path) -> Features:
    """What `FeatureExtraction.combine` wrote."""
    rows = np.load(folder / "rows.npy")
    return Features(
        values=np.load(folder / "values.npy", mmap_mode="r")[: len(rows)],
        rows=rows,
        unusable=tuple(json.loads((folder / "unusable.json").read_text(encoding="utf-8"))),
    )


def load_embedder(model: Path | None, *, input_px: int | None = None) -> "tuple[ListingClassifier, Preprocessing]":
    """A network to take features from, and how it wants its photos.

    Args:
        model: the folder of a finished run or a bundle; None for `DEFAULT_BACKBONE` with ImageNet weights. Features
            of a model that was trained on the labels in question hide the mistakes that it memorised.
        input_px: instead of the model's own, or of 224.

    Raises:
        RunError, BundleError, RecipeError: weights that cannot be had.
        ListingVisionError: an `input_px` out of range.
    """
    from training.inference.network import load_bundle_model
    from training.inference.pretrained import create_backbone
    from training.run import Run
    from vision.bundle import load_bundle

    own_px = DEFAULT_INPUT_PX
    if model is None:
        embedder = _create_embedder(create_backbone(DEFAULT_BACKBONE, "imagenet"))
    elif (model / "run.json").is_file():
        run = Run(model)
        embedder, own_px = run.load_model(), run.recipe.input_px
    else:
        bundle = load_bundle(model)
        embedder, own_px = load_bundle_model(bundle), bundle.info.preprocessing.input_px
    try:
        return embedder.eval(), Preprocessing(input_px=own_px if input_px is None else input_px)
    except ValueError as error:
        raise ListingVisionError(f"{error}; give another input_px") from error


def _create_embedder(model: "nn.Module") -> "ListingClassifier":
    from vision.model import ListingClassifier, ModelSpec

    if isinstance(model, ListingClassifier):
        return model
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    spec = ModelSpec(
        backbone=str(cfg.get("architecture", type(model).__name__)),
        num_categories=1,
        num_brands=1,
        mean=tuple(cfg.get("mean", (0.5, 0.5, 0.5))),
        std=tuple(cfg.get("std", (0.5, 0.5, 0.5))),
    )
    return ListingClassifier(spec, model)


def _cache_key(embedder: "ListingClassifier", manifest: Manifest, preprocessing: Preprocessing) -> str:
    hashed = hashlib.sha256(preprocessing.fingerprint().encode())
    hashed.update(repr((embedder.spec.mean, embedder.spec.std, manifest.base_url)).encode())
    for photos in manifest.column("photo").chunks:
        for photo in photos.to_pylist():
            hashed.update(repr(photo).encode())
    for name, tensor in embedder.backbone.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:32]
