"""The model bundle: one folder, complete in itself, every file hashed, nothing unpickled on loading."""

import dataclasses
import functools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from vision.bundle_manifest import (
    NUM_VERSION_DIGITS,
    BrandHead,
    BundleInfo,
    check_model_name,
    compute_digest,
    read_manifest,
    write_manifest,
)
from vision.bundle_signature import verify_signature
from vision.calibration import Calibration, UncertifiedCode
from vision.errors import BundleError, TaxonomyError
from vision.runtime.files import compute_sha256
from vision.taxonomy import Taxonomy

__all__ = [
    "BUNDLE_FILES",
    "ONNX_ON_CPU",
    "OPTIONAL_FILES",
    "UNKNOWN_BACKEND",
    "BrandHead",
    "Bundle",
    "BundleInfo",
    "Golden",
    "certificate_binding",
    "check_beside",
    "check_model_name",
    "compute_digest",
    "create_bundle",
    "load_bundle",
    "name_rendition_backend",
    "require_new_folder",
    "seal_bundle",
]

BUNDLE_FILES = (
    "taxonomy.json",
    "calibration.json",
    "weights.safetensors",
    "golden.safetensors",
    "model.onnx",
    "model.torchscript.pt",
    "model_card.md",
)
OPTIONAL_FILES = ("model.pt2",)
"""What only some bundles have, hashed like the rest."""
_MODEL_FILES = ("weights.safetensors", "model.onnx", "model.torchscript.pt")
"""Whose logits a version stands for."""


ONNX_ON_CPU = "onnxruntime-cpu"
"""The backend that an export is calibrated with."""
UNKNOWN_BACKEND = "unknown"
"""A backend that does not name itself; no guarantee holds for it."""


@dataclass(frozen=True)
class Golden:
    """Photos with the exported model's own logits; a server must reproduce them."""

    photos_nhwc: npt.NDArray[np.uint8]
    """(G, S, S, 3)."""
    category_logits: npt.NDArray[np.float32]
    """(G, C)."""
    brand_logits: npt.NDArray[np.float32]
    """(G, B)."""
    scope: npt.NDArray[np.float32]
    """(G,) scope scores; NaN for a model without them."""

    def save(self, path: Path) -> None:
        safetensors.numpy.save_file(
            {
                "photos": self.photos_nhwc,
                "category_logits": self.category_logits,
                "brand_logits": self.brand_logits,
                "scope_score": self.scope,
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> "Golden":
        tensors = safetensors.numpy.load_file(path)
        none = np.full(len(tensors["photos"]), np.nan, np.float32)
        return cls(
            tensors["photos"], tensors["category_logits"], tensors["brand_logits"], tensors.get("scope_score", none)
        )


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

    @functools.cached_property
    def rule_version(self) -> str:
        """Twelve hex digits that name the model, its scores and gates, and what outcomes may certify.

        They stay the same while the evidence grows. Empty if outcomes can certify nothing, or guarantees are void.
        """
        rule = self.calibration.list_rule()
        if not rule:
            return ""
        backend = self.calibration.certifies.get("backend", UNKNOWN_BACKEND)
        return compute_digest({**rule, "binding": certificate_binding(self.info, self.sha256, backend=backend)})[
            :NUM_VERSION_DIGITS
        ]

    @property
    def onnx_path(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def torchscript_path(self) -> Path:
        return self.folder / "model.torchscript.pt"

    @property
    def aot_inductor_path(self) -> Path:
        """Raises BundleError where the bundle was exported without."""
        if "model.pt2" not in self.files:
            raise BundleError(f"bundle {self.folder} has no model.pt2; export the run again with --pt2")
        return self.folder / "model.pt2"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that `manifest.json` has the hashes of."""
        return (*BUNDLE_FILES, *(name for name in OPTIONAL_FILES if name in self.sha256))

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
    names = [*BUNDLE_FILES, *(name for name in OPTIONAL_FILES if (folder / name).is_file())]
    write_manifest(folder, info, {name: compute_sha256(folder / name) for name in names})
    # safetensors creates files that only their owner can read; a serving container runs as another user.
    for name in names:
        (folder / name).chmod((folder / "manifest.json").stat().st_mode & 0o777)


def load_bundle(folder: Path | str, *, public_key: Path | None = None) -> Bundle:
    """Read and check a bundle.

    A calibration made for other weights or another preprocessing is loaded without its guarantees.

    Args:
        folder: of the bundle.
        public_key: PEM file of the key that must have signed it; None: a signature is not looked at.

    Raises:
        BundleError: no bundle, another schema version, a missing or altered file (by name), a version that is not that
            of the weights, contradictions, or not signed with the key.
        OSError: the key cannot be read.
    """
    folder = Path(folder)
    if public_key:
        verify_signature(folder, public_key)
    info, hashes = read_manifest(folder)
    _check_files(folder, hashes)
    if info.model_version not in info.valid_versions(hashes["weights.safetensors"]):
        raise BundleError(
            f"bundle {folder}: model_version {info.model_version!r} is not that of its weights, "
            f"{hashes['weights.safetensors'][:NUM_VERSION_DIGITS]}; export it again"
        )
    try:
        taxonomy = Taxonomy.load(folder / "taxonomy.json")
        calibration = Calibration.from_json((folder / "calibration.json").read_text(encoding="utf-8"))
    # Values of a wrong type or nesting.
    except (TypeError, ValueError, AttributeError, RecursionError, TaxonomyError, BundleError) as error:
        raise BundleError(f"bundle {folder}: {error}") from error
    if (info.num_categories, info.num_brands) != (len(taxonomy.leaf_ids), len(taxonomy.brand_labels)):
        raise BundleError(
            f"bundle {folder}: the model has {info.num_categories} categories and {info.num_brands} brand labels, "
            f"its taxonomy {len(taxonomy.leaf_ids)} and {len(taxonomy.brand_labels)}"
        )
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


def check_beside(bundle: Bundle, loaded: Bundle) -> None:
    """Check that a bundle may be loaded beside another one.

    Raises:
        BundleError: they have one model version but not the same weights and exports. Their suggestions could not be
            told apart, and a cache by version would serve one for the other.
    """
    if bundle.info.model_version == loaded.info.model_version:
        differing = [name for name in _MODEL_FILES if bundle.sha256[name] != loaded.sha256[name]]
        if differing:
            raise BundleError(
                f"bundle {bundle.folder} has the model version of the loaded {loaded.folder}, "
                f"{bundle.info.model_version}, but another {differing[0]}; unload that one first, or export again"
            )


def _check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    for name in (*BUNDLE_FILES, *(name for name in OPTIONAL_FILES if name in hashes)):
        if name not in hashes:
            raise BundleError(f"{folder / 'manifest.json'} has no sha256 of {name}")
        if not (folder / name).is_file():
            raise BundleError(f"bundle {folder}: {name} is missing; copy the bundle again")
        if compute_sha256(folder / name) != hashes[name]:
            raise BundleError(
                f"bundle {folder}: {name} was altered (its sha256 is not the recorded one); copy it again"
            )


def name_rendition_backend(backend: str, rendition_px: int | None) -> str:
    """Return the name of a backend for certificates, where its photos are renditions.

    Logits of renditions are not those of the originals, so guarantees for the ones do not hold for the others.

    Args:
        backend: what computes the logits.
        rendition_px: short side of the renditions; None: photos are originals.
    """
    return backend if rendition_px is None or backend == UNKNOWN_BACKEND else f"{backend}@{rendition_px}px"


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
