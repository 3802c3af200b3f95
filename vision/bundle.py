"""The model bundle: one folder, complete in itself, every file hashed, nothing unpickled on loading."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from vision.calibration import Calibration, UncertifiedCode
from vision.errors import BundleError, TaxonomyError
from vision.images import Preprocessing
from vision.runtime.files import compute_sha256
from vision.taxonomy import Taxonomy

__all__ = [
    "BUNDLE_FILES",
    "ONNX_ON_CPU",
    "UNKNOWN_BACKEND",
    "BrandHead",
    "Bundle",
    "BundleInfo",
    "Golden",
    "certificate_binding",
    "compute_digest",
    "create_bundle",
    "load_bundle",
    "require_new_folder",
    "seal_bundle",
]

BrandHead = Literal["linear", "cosine"]
"""How brand logits are computed from the embedding; see `vision.model`."""

SCHEMA_VERSION = 1
BUNDLE_FILES = (
    "taxonomy.json",
    "calibration.json",
    "weights.safetensors",
    "golden.safetensors",
    "model.onnx",
    "model.torchscript.pt",
    "model_card.md",
)


ONNX_ON_CPU = "onnxruntime-cpu"
"""The backend that an export is calibrated with."""
UNKNOWN_BACKEND = "unknown"
"""A backend that does not name itself; no guarantee holds for it."""


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """`manifest.json` without the file hashes."""

    model_name: str
    model_version: str
    """First hex digits of the sha256 of the weights."""
    backbone: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_categories: int
    num_brands: int
    embedding_size: int
    precision: str
    taxonomy_version: str
    preprocessing: Preprocessing
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    training: Mapping[str, Any]
    """Recipe, versions and last metrics of the run."""
    parity: Mapping[str, Any]
    """Largest difference between the exports' logits and the trained model's, and on which photos."""
    brand_head: BrandHead = "linear"
    """Together with the fields above this suffices to rebuild the network. Older bundles lack it."""


@dataclass(frozen=True)
class Golden:
    """Photos with the exported model's own logits; a server must reproduce them."""

    photos_nhwc: npt.NDArray[np.uint8]
    """(G, S, S, 3)."""
    category_logits: npt.NDArray[np.float32]
    """(G, C)."""
    brand_logits: npt.NDArray[np.float32]
    """(G, B)."""

    def save(self, path: Path) -> None:
        safetensors.numpy.save_file(
            {
                "photos": self.photos_nhwc,
                "category_logits": self.category_logits,
                "brand_logits": self.brand_logits,
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> "Golden":
        tensors = safetensors.numpy.load_file(path)
        return cls(tensors["photos"], tensors["category_logits"], tensors["brand_logits"])


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was checked file by file."""

    folder: Path
    info: BundleInfo
    taxonomy: Taxonomy
    calibration: Calibration
    """The calibration to decide with; without guarantees if they were certified for something else."""
    calibration_version: str
    """Version of `calibration.json`, also where its guarantees are void."""
    sha256: Mapping[str, str]

    @property
    def release(self) -> str:
        """Name of weights and calibration: `MODEL_VERSION.CALIBRATION`, the latter cut to six characters."""
        return f"{self.info.model_version}.{self.calibration_version[:6]}"

    @property
    def onnx_path(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def torchscript_path(self) -> Path:
        return self.folder / "model.torchscript.pt"

    def for_backend(self, backend: str) -> "Bundle":
        """Return the bundle for use with logits that `backend` computes.

        Guarantees that were certified with another backend are void: fields are suggested, not filled.
        """
        certified_backend = self.calibration.certifies.get("backend")
        if certified_backend == backend != UNKNOWN_BACKEND:
            return self
        return self.without_guarantees(
            f"certificate void: made with backend {certified_backend}, served by {backend}", code="CERTIFICATE_VOID"
        )

    def without_guarantees(self, reason: str, *, code: UncertifiedCode) -> "Bundle":
        """Return the bundle with all guarantees void, so that nothing is filled."""
        return dataclasses.replace(self, calibration=self.calibration.void(reason, code=code))

    @functools.cached_property
    def golden(self) -> Golden:
        return Golden.load(self.folder / "golden.safetensors")


def require_new_folder(folder: Path) -> None:
    """Check that an output folder is free, before hours of work.

    Raises:
        BundleError: the folder exists.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists; bundles are never overwritten: give another --output")


@contextmanager
def create_bundle(folder: Path) -> Iterator[Path]:
    """Yield a folder to build in; it is renamed to `folder` at the end if it then holds a complete bundle.

    Raises:
        BundleError: `folder` exists, or the built bundle is incomplete.
    """
    require_new_folder(folder)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    yield building
    load_bundle(building)
    building.rename(folder)


def seal_bundle(folder: Path, info: BundleInfo) -> None:
    """Write `manifest.json` with the hashes of all other files, and make all files as readable as it is.

    Raises:
        BundleError: a file of `BUNDLE_FILES` is missing.
    """
    missing = [name for name in BUNDLE_FILES if not (folder / name).is_file()]
    if missing:
        raise BundleError(f"bundle {folder} cannot be sealed; missing: {', '.join(missing)}")
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **asdict(info),
        "sha256": {name: compute_sha256(folder / name) for name in BUNDLE_FILES},
    }
    manifest["manifest_sha256"] = compute_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    # safetensors creates files that only their owner can read; a serving container runs as another user.
    for name in BUNDLE_FILES:
        (folder / name).chmod((folder / "manifest.json").stat().st_mode & 0o777)


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle.

    A calibration made for other weights or another preprocessing is loaded without its guarantees.

    Raises:
        BundleError: no bundle, another schema version, a missing or altered file (by name), or contradictions.
    """
    folder = Path(folder)
    raw = _read_manifest(folder)
    hashes: dict[str, str] = raw.pop("sha256", {})
    _check_files(folder, hashes)
    try:
        info = _parse_info(raw)
        taxonomy = Taxonomy.load(folder / "taxonomy.json")
    except (TypeError, ValueError, KeyError, TaxonomyError) as error:
        raise BundleError(f"bundle {folder}: {error}") from error
    if (info.num_categories, info.num_brands) != (len(taxonomy.leaf_ids), len(taxonomy.brand_labels)):
        raise BundleError(
            f"bundle {folder}: the model has {info.num_categories} categories and {info.num_brands} brand labels, "
            f"its taxonomy {len(taxonomy.leaf_ids)} and {len(taxonomy.brand_labels)}"
        )
    calibration = Calibration.from_json((folder / "calibration.json").read_text(encoding="utf-8"))
    calibration_version = calibration.version
    for name, actual in certificate_binding(
        info, hashes, backend=calibration.certifies.get("backend", UNKNOWN_BACKEND)
    ).items():
        if calibration.certifies.get(name) != actual:
            calibration = calibration.void(f"certificate void: {name} changed since calibration")
            break
    return Bundle(
        folder=folder,
        info=info,
        taxonomy=taxonomy,
        calibration=calibration,
        calibration_version=calibration_version,
        sha256=hashes,
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleError(f"{folder} is not a model bundle (no manifest.json); `listing-vision export` makes one")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    schema_version = raw.pop("schema_version", None)
    if schema_version != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version {schema_version!r} is not {SCHEMA_VERSION}, the one this version reads"
        )
    if raw.pop("manifest_sha256", None) != compute_digest({"schema_version": schema_version, **raw}):
        raise BundleError(
            f"bundle {folder}: manifest.json was altered (its sha256 is not the recorded one); copy it again"
        )
    return raw


def _check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    for name in BUNDLE_FILES:
        if name not in hashes:
            raise BundleError(f"{folder / 'manifest.json'} has no sha256 of {name}")
        if not (folder / name).is_file():
            raise BundleError(f"bundle {folder}: {name} is missing; copy the bundle again")
        if compute_sha256(folder / name) != hashes[name]:
            raise BundleError(
                f"bundle {folder}: {name} was altered (its sha256 is not the recorded one); copy it again"
            )


def certificate_binding(info: BundleInfo, sha256: Mapping[str, str], *, backend: str = ONNX_ON_CPU) -> dict[str, str]:
    """Return the facts that a guarantee is bound to; a change of any of them voids it.

    Args:
        info: the bundle's `info`.
        sha256: hashes of the bundle's files, by name.
        backend: the backend that computed the calibration logits.
    """
    return {
        "backend": backend,
        "weights": sha256["weights.safetensors"],
        "model": sha256["model.onnx"],
        "taxonomy": sha256["taxonomy.json"],
        "preprocessing": info.preprocessing.fingerprint(),
        "precision": info.precision,
    }


def compute_digest(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse_info(raw: dict[str, Any]) -> BundleInfo:
    return BundleInfo(
        **{
            **raw,
            "preprocessing": Preprocessing(**raw["preprocessing"]),
            "mean": tuple(raw["mean"]),
            "std": tuple(raw["std"]),
            "inputs": tuple(raw["inputs"]),
            "outputs": tuple(raw["outputs"]),
        }
    )
