"""`manifest.json` of a bundle: what the model is, and the hash of every file. Nothing in it is believed unchecked."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from vision.errors import BundleError
from vision.images import Preprocessing

__all__ = [
    "NUM_VERSION_DIGITS",
    "BrandHead",
    "BundleInfo",
    "check_model_name",
    "compute_digest",
    "read_manifest",
    "write_manifest",
]

SCHEMA_VERSION = 1
NUM_VERSION_DIGITS = 12
MAX_NAME_CHARS = 100
_MAX_LABELS = 10_000_000
BrandHead = Literal["linear", "cosine"]
"""How brand logits are computed from the embedding; see `vision.model`."""
_WORD = re.compile(r"[a-z0-9_]{1,20}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """`manifest.json` without the file hashes."""

    model_name: str
    model_version: str
    """First hex digits of the sha256 of the weights; for another precision than that of training, with its name."""
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

    def valid_versions(self, weights_sha256: str) -> tuple[str, str]:
        """Return the versions that a model with these weights may have."""
        version = weights_sha256[:NUM_VERSION_DIGITS]
        return version, f"{version}-{self.precision}"


def check_model_name(name: str) -> None:
    """Check a name that people read in responses, logs and metrics.

    Raises:
        BundleError: it is empty, too long, or has characters that cannot be printed.
    """
    if not _is_name(name):
        raise BundleError(
            f"model name {name[:MAX_NAME_CHARS]!r}: give 1 to {MAX_NAME_CHARS} printable characters, without spaces at "
            "the ends"
        )


def write_manifest(folder: Path, info: BundleInfo, sha256: Mapping[str, str]) -> None:
    """Raises BundleError: a value of `info` could not be read back."""
    manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(info), "sha256": dict(sha256)}
    manifest["manifest_sha256"] = compute_digest(manifest)
    text = json.dumps(manifest, indent=1) + "\n"
    _parse_info(json.loads(text), source=f"bundle {folder}")
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> tuple[BundleInfo, dict[str, str]]:
    """Return the model's facts and the hashes of the files.

    Raises:
        BundleError: no bundle, another schema version, an altered manifest, or a value of the wrong type.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleError(f"{folder} is not a model bundle (no manifest.json); `listing-vision export` makes one")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise BundleError(f"{path} holds no JSON object; copy the bundle again")
        schema_version = raw.get("schema_version")
        if schema_version != SCHEMA_VERSION:
            raise BundleError(
                f"{path}: schema_version {_shorten(schema_version)} is not {SCHEMA_VERSION}, the one this version reads"
            )
        digest = compute_digest({name: value for name, value in raw.items() if name != "manifest_sha256"})
    except RecursionError as error:
        raise BundleError(f"{path} is nested too deeply; copy the bundle again") from error
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if raw.get("manifest_sha256") != digest:
        raise BundleError(
            f"bundle {folder}: manifest.json was altered (its sha256 is not the recorded one); copy it again"
        )
    return _parse_info(raw, source=str(path)), _parse_hashes(raw.get("sha256", {}), source=str(path))


def compute_digest(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse_hashes(raw: Any, *, source: str) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(v, str) and _SHA256.fullmatch(v) for v in raw.values()):
        raise BundleError(f"{source}: sha256 is no object of 64 hex digits per file; copy the bundle again")
    return raw


def _parse_info(raw: Mapping[str, Any], *, source: str) -> BundleInfo:
    """Build the info from the values of the manifest. Raises BundleError, naming the field and its value."""
    values = {name: value for name, value in raw.items() if name not in _NOT_INFO}
    known = {field.name: field for field in fields(BundleInfo)}
    missing = [name for name, field in known.items() if name not in values and field.default is MISSING]
    if missing:
        raise BundleError(f"{source} lacks {', '.join(missing)}; copy the bundle again")
    unknown = [name for name in values if name not in known]
    if unknown:
        raise BundleError(f"{source}: {_shorten(unknown[0])} is not known to this version; update listing-vision")
    for name, value in values.items():
        expected, is_valid = _RULES[name]
        if not is_valid(value):
            raise BundleError(f"{source}: {name} {_shorten(value)} is not {expected}")
    try:
        preprocessing = Preprocessing(**values["preprocessing"])
    except (TypeError, ValueError) as error:
        raise BundleError(f"{source}: preprocessing: {error}") from error
    tuples = {name: tuple(values[name]) for name in ("mean", "std", "inputs", "outputs")}
    return BundleInfo(**{**values, **tuples, "preprocessing": preprocessing})


def _shorten(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= MAX_NAME_CHARS else f"{shown[:MAX_NAME_CHARS]}…"


def _is_name(value: object) -> bool:
    # Not printable: control characters, line ends, and marks that turn the direction of what follows.
    return (
        isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable() and value == value.strip()
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_LABELS


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) for one in value)
    )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_NAME_CHARS and all(map(_is_name, value))


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_Rule = tuple[str, Callable[[Any], bool]]
_NAME: _Rule = (f"a text of 1 to {MAX_NAME_CHARS} printable characters", _is_name)
_COUNT: _Rule = (f"a number from 1 to {_MAX_LABELS}", _is_count)
_COLOUR: _Rule = ("a list of three numbers", _is_colour)
_NAMES: _Rule = ("a list of names", _is_list_of_names)
_OBJECT: _Rule = ("an object", _is_object)
_RULES: dict[str, _Rule] = {
    "model_name": _NAME,
    "model_version": _NAME,
    "backbone": _NAME,
    "mean": _COLOUR,
    "std": _COLOUR,
    "num_categories": _COUNT,
    "num_brands": _COUNT,
    "embedding_size": _COUNT,
    "precision": (
        "a word of 1 to 20 small letters, digits and underscores",
        lambda value: isinstance(value, str) and bool(_WORD.fullmatch(value)),
    ),
    "taxonomy_version": _NAME,
    "preprocessing": _OBJECT,
    "inputs": _NAMES,
    "outputs": _NAMES,
    "training": _OBJECT,
    "parity": _OBJECT,
    "brand_head": (f"one of {', '.join(get_args(BrandHead))}", lambda value: value in get_args(BrandHead)),
}
_NOT_INFO = ("schema_version", "sha256", "manifest_sha256")
