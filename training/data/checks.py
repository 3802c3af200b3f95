"""Checks of a manifest before training: every finding names its rows and photos."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from vision.errors import PhotoError
from vision.images import decode_photo
from vision.manifest import SPLITS, Manifest, read_photo
from vision.runtime.cpus import count_usable_cores
from vision.taxonomy import Taxonomy

__all__ = ["KINDS", "Finding", "check_manifest"]

KINDS = {
    "bad_photo": "a photo that cannot be used",
    "unknown_category": "a category that the taxonomy does not have",
    "unknown_brand": "a brand that the taxonomy does not have",
    "unknown_split": "a split that is not train, val or test",
    "contradicting_labels": "a listing whose photos carry different labels",
    "straddling_listing": "a listing with photos in more than one split",
    "exact_duplicate": "the same bytes in more than one split",
    "near_duplicate": "nearly the same pixels in more than one split",
}

_HASHED_PX = 64
_NEAR_BITS = 4
"""Largest Hamming distance of two 64-bit perceptual hashes (imagehash.phash) that counts as the same photo."""


@dataclass(frozen=True)
class Finding:
    kind: str
    """A key of `KINDS`."""
    message: str


class _Fingerprint(NamedTuple):
    sha256: bytes
    phash: int


def check_manifest(manifest: Manifest, taxonomy: Taxonomy) -> list[Finding]:
    """Decode every photo and compare all of them, in `KINDS` order."""
    fingerprints, bad = _fingerprint_photos(manifest)
    return [
        *bad,
        *_find_unknown_values(manifest, "category", taxonomy.find_category),
        *_find_unknown_values(manifest, "brand", taxonomy.find_brand),
        *_find_unknown_splits(manifest),
        *_find_contradicting_labels(manifest),
        *_find_straddling_listings(manifest),
        *_find_duplicates(manifest, fingerprints),
    ]


def _fingerprint_photos(manifest: Manifest) -> tuple[dict[int, _Fingerprint], list[Finding]]:
    def fingerprint(row: int) -> _Fingerprint | Finding:
        url = manifest.get_photo_url(row)
        try:
            data = read_photo(url)
            photo = decode_photo(data, at_least_px=_HASHED_PX)
        except (OSError, PhotoError) as error:
            reason = error.reason if isinstance(error, PhotoError) else "PHOTO_MISSING"
            return Finding("bad_photo", f"row {row + 1}: {url}: {reason}: {error}")
        bits = imagehash.phash(Image.fromarray(photo)).hash.ravel()
        return _Fingerprint(hashlib.sha256(data).digest(), int.from_bytes(np.packbits(bits).tobytes(), "big"))

    fingerprints: dict[int, _Fingerprint] = {}
    findings = []
    with ThreadPoolExecutor(count_usable_cores()) as pool:
        rows = range(len(manifest))
        for row, result in zip(rows, tqdm(pool.map(fingerprint, rows), total=len(manifest), disable=None), strict=True):
            if isinstance(result, Finding):
                findings.append(result)
            else:
                fingerprints[row] = result
    return fingerprints, findings


def _find_unknown_values(manifest: Manifest, column: str, find: Callable[[str], object]) -> Iterator[Finding]:
    problems: dict[str, str] = {}
    for value in manifest.column(column).unique().to_pylist():
        try:
            if value.strip():
                find(value)
        except KeyError as error:
            problems[value] = error.args[0]
    for row, value in enumerate(manifest.column(column).to_pylist()):
        if value in problems:
            yield Finding(f"unknown_{column}", f"row {row + 1}: {problems[value]}")


def _find_unknown_splits(manifest: Manifest) -> Iterator[Finding]:
    for row, value in enumerate(manifest.column("split").to_pylist()):
        if value and value not in SPLITS:
            yield Finding("unknown_split", f"row {row + 1}: split {value!r} is not one of {', '.join(SPLITS)}")


def _find_contradicting_labels(manifest: Manifest) -> Iterator[Finding]:
    listings = manifest.column("listing_id").to_pylist()
    for column in ("category", "brand"):
        labels_of: dict[str, set[str]] = {}
        for listing, label in zip(listings, manifest.column(column).to_pylist(), strict=True):
            if label:
                labels_of.setdefault(listing, set()).add(label)
        for listing, labels in labels_of.items():
            if len(labels) > 1:
                values = " and ".join(repr(label) for label in sorted(labels))
                yield Finding("contradicting_labels", f"listing {listing!r} has the {column} {values}")


def _find_straddling_listings(manifest: Manifest) -> Iterator[Finding]:
    splits_of: dict[str, set[str]] = {}
    for listing, split in zip(
        manifest.column("listing_id").to_pylist(), manifest.column("split").to_pylist(), strict=True
    ):
        splits_of.setdefault(listing, set()).add(split or "(none)")
    for listing, splits in splits_of.items():
        if len(splits) > 1:
            yield Finding("straddling_listing", f"listing {listing!r} has photos in {', '.join(sorted(splits))}")


def _find_duplicates(manifest: Manifest, fingerprints: dict[int, _Fingerprint]) -> Iterator[Finding]:
    splits = manifest.column("split").to_pylist()
    by_hash: dict[bytes, dict[str, int]] = {}
    for row, fingerprint in fingerprints.items():
        by_hash.setdefault(fingerprint.sha256, {}).setdefault(splits[row], row)
    for rows_by_split in by_hash.values():
        rows = sorted(rows_by_split.values())
        for other in rows[1:]:
            yield Finding("exact_duplicate", _describe_pair(manifest, rows[0], other))
    for a, b in _find_near_pairs(fingerprints, splits):
        if fingerprints[a].sha256 != fingerprints[b].sha256:
            yield Finding("near_duplicate", _describe_pair(manifest, a, b))


def _find_near_pairs(fingerprints: dict[int, _Fingerprint], splits: list[str | None]) -> Iterator[tuple[int, int]]:
    rows = np.array(list(fingerprints), dtype=np.int64)
    hashes = np.array([fingerprint.phash for fingerprint in fingerprints.values()], dtype=np.uint64)
    codes = np.unique([splits[row] or "" for row in rows], return_inverse=True)[1]
    for i in range(len(rows) - 1):
        distances: npt.NDArray[np.uint8] = np.bitwise_count(hashes[i + 1 :] ^ hashes[i])
        for j in np.flatnonzero((distances <= _NEAR_BITS) & (codes[i + 1 :] != codes[i])):
            yield int(rows[i]), int(rows[i + 1 + j])


def _describe_pair(manifest: Manifest, a: int, b: int) -> str:
    splits = manifest.column("split")
    first, second = (f"row {row + 1} ({splits[row]}) {manifest.get_photo_url(row)}" for row in (a, b))
    return f"{first} and {second}"
