"""Embeddings of the photos of a manifest by a frozen backbone, kept in a cache on disk. Torch is imported on use."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.inference.predictions import iterate_usable_photos
from vision.errors import ListingVisionError
from vision.images import Preprocessing
from vision.manifest import Manifest

if TYPE_CHECKING:
    from torch import nn

    from vision.model import ListingClassifier

__all__ = [
    "DEFAULT_BACKBONE",
    "Features",
    "extract_features",
    "load_embedder",
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
            not noticed, nor one that has become readable since.

    Raises:
        ManifestError: no photo can be used.
    """
    embedder = _create_embedder(model)
    if cache is None:
        values = np.empty((len(manifest), embedder.category_head.in_features), np.float32)
        return _embed_photos(embedder, manifest, preprocessing, into=values, batch_size=batch_size, device=device)
    folder = cache / _cache_key(embedder, manifest, preprocessing)
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-", ignore_cleanup_errors=True) as temporary:
            building = Path(temporary) / "features"
            building.mkdir()
            _build_cache(building, embedder, manifest, preprocessing, batch_size=batch_size, device=device)
            try:
                building.rename(folder)
            except OSError:  # another process made the same features meanwhile
                if not folder.is_dir():
                    raise
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


def _embed_photos(
    embedder: "ListingClassifier",
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    into: npt.NDArray[np.float32],
    batch_size: int,
    device: str,
) -> Features:
    import torch

    embedder = embedder.to(device).eval()
    kept: list[int] = []
    unusable: list[str] = []
    for rows, photos_nhwc in iterate_usable_photos(manifest, preprocessing, unusable=unusable, batch_size=batch_size):
        with torch.inference_mode():
            embedding = embedder(torch.from_numpy(photos_nhwc).to(device)).embedding
        into[len(kept) : len(kept) + len(rows)] = embedding.cpu().numpy()
        kept.extend(rows)
    return Features(values=into[: len(kept)], rows=np.array(kept, dtype=np.int64), unusable=tuple(unusable))


def _build_cache(
    folder: Path,
    embedder: "ListingClassifier",
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: str,
) -> None:
    # As long as the manifest; the features of usable photos stand at its head, the rest is a hole in the file.
    values = np.lib.format.open_memmap(
        folder / "values.npy", mode="w+", dtype=np.float32, shape=(len(manifest), embedder.category_head.in_features)
    )
    made = _embed_photos(embedder, manifest, preprocessing, into=values, batch_size=batch_size, device=device)
    values.flush()
    np.save(folder / "rows.npy", made.rows)
    (folder / "unusable.json").write_text(json.dumps(made.unusable), encoding="utf-8")


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
