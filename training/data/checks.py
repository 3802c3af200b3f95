"""Checks of a manifest before training: every finding names its rows and photos."""

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from PIL import Image
from tqdm import tqdm

from training.data.class_counts import NO_SPLIT, ClassCounts, count_classes
from vision.errors import PhotoError
from vision.images import decode_photo
from vision.manifest import SPLITS, Manifest
from vision.photo_files import read_photo
from vision.runtime.cpus import count_usable_cores
from vision.taxonomy import Taxonomy

__all__ = [
    "KINDS",
    "WARNINGS",
    "Finding",
    "check_labels",
    "check_photos",
    "write_findings",
]

KINDS = {
    "split_missing": "a split that no photo has",
    "class_without_photos": "a leaf category without any photo",
    "class_with_one_photo": "a leaf category with a single photo",
    "class_without_train": "a leaf category with photos, none of them in train",
    "class_without_val": "a leaf category with photos, none of them in val",
    "unknown_category": "a category that the taxonomy does not have",
    "unknown_brand": "a brand that the taxonomy does not have",
    "unknown_split": f"a split that is not one of {', '.join(SPLITS)}",
    "contradicting_labels": "a listing whose photos carry different labels",
    "straddling_listing": "a listing with photos in more than one split",
    "bad_photo": "a photo that cannot be used",
    "exact_duplicate": "the same bytes in more than one split",
    "near_duplicate": "nearly the same pixels in more than one split",
}
WARNINGS = frozenset(
    {
        "split_missing",
        "class_without_photos",
        "class_with_one_photo",
        "class_without_train",
        "class_without_val",
        "near_duplicate",
    }
)
"""Kinds that a person should look at, and that may be right."""

_HASHED_PX = 64
_NEAR_BITS = 4
"""Largest Hamming distance of two 64-bit perceptual hashes (imagehash.phash) that counts as the same photo."""
_MAX_NAMED_PLACES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, at however many places."""

    kind: str
    """A key of `KINDS`."""
    value: str
    """What is wrong: a reason, an unknown value, the splits concerned; one finding per kind and value."""
    places: tuple[str, ...]
    """Rows with their photos, listings, classes."""

    def __str__(self) -> str:
        named = "; ".join(self.places[:_MAX_NAMED_PLACES])
        more = f"{len(self.places)} in all, such as " if len(self.places) > _MAX_NAMED_PLACES else ""
        return f"{self.kind}: {self.value}: {more}{named}"


class _Fingerprint(NamedTuple):
    sha256: bytes
    phash: int


def check_labels(manifest: Manifest, taxonomy: Taxonomy) -> list[Finding]:
    """Check what a manifest says, without reading a photo."""
    return [
        *_find_thin_classes(count_classes(manifest, taxonomy)),
        *_find_unknown_values(manifest, "category", taxonomy.find_category),
        *_find_unknown_values(manifest, "brand", taxonomy.find_brand),
        *_find_unknown_values(manifest, "split", _find_split),
        *_group("contradicting_labels", _find_contradicting_labels(manifest)),
        *_group("straddling_listing", _find_straddling_listings(manifest)),
    ]


def check_photos(manifest: Manifest) -> list[Finding]:
    """Decode every photo and compare all of them."""
    fingerprints, bad = _fingerprint_photos(manifest)
    return [*_group("bad_photo", bad), *_find_duplicates(manifest, fingerprints)]


def _group(kind: str, found: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Findings from pairs of value and place."""
    places: dict[str, list[str]] = {}
    for value, place in found:
        places.setdefault(value, []).append(place)
    for value, some in places.items():
        yield Finding(kind, value, tuple(some))


def _find_thin_classes(counts: ClassCounts) -> Iterator[Finding]:
    if counts.splits == (NO_SPLIT,):
        yield Finding("split_missing", "no photo has a split", ("`listing-vision data split` makes them",))
    else:
        for split, consequence in _NEEDED_SPLITS.items():
            if split not in counts.splits:
                yield Finding("split_missing", f"no photo is in {split}", (consequence,))

    leaves = [(path, counts.count(path)) for path in counts.leaf_paths]
    thin = {
        "class_without_photos": [path for path, num_photos in leaves if not num_photos],
        "class_with_one_photo": [path for path, num_photos in leaves if num_photos == 1],
    }
    for split in ("train", "val"):
        if split in counts.splits:
            thin[f"class_without_{split}"] = [path for path, num in leaves if num and not counts.count(path, split)]
    for kind, paths in thin.items():
        yield from _group(kind, ((KINDS[kind], path) for path in paths))


_NEEDED_SPLITS = {
    "train": "nothing can be trained",
    "val": "no epoch can be evaluated",
    "calibrate": "thresholds are certified on val, which models are selected on",
    "test": "no result can be reported",
}
"""Split to what follows where it is missing."""


def _fingerprint_photos(manifest: Manifest) -> tuple[dict[int, _Fingerprint], list[tuple[str, str]]]:
    """Fingerprints by row; reason and place of the photos that have none."""

    def fingerprint(row: int) -> _Fingerprint | tuple[str, str]:
        url = manifest.get_photo_url(row)
        try:
            data = read_photo(url)
            photo = decode_photo(data, at_least_px=_HASHED_PX)
        except (OSError, PhotoError) as error:
            reason = error.reason if isinstance(error, PhotoError) else "PHOTO_MISSING"
            return reason, f"row {row + 1}: {url}: {error}"
        bits = imagehash.phash(Image.fromarray(photo)).hash.ravel()
        return _Fingerprint(hashlib.sha256(data).digest(), int.from_bytes(np.packbits(bits).tobytes(), "big"))

    fingerprints: dict[int, _Fingerprint] = {}
    bad = []
    with ThreadPoolExecutor(count_usable_cores()) as pool:
        rows = range(len(manifest))
        for row, result in zip(rows, tqdm(pool.map(fingerprint, rows), total=len(manifest), disable=None), strict=True):
            if isinstance(result, _Fingerprint):
                fingerprints[row] = result
            else:
                bad.append(result)
    return fingerprints, bad


def _find_unknown_values(manifest: Manifest, column: str, find: Callable[[str], object]) -> Iterator[Finding]:
    problems: dict[str, str] = {}
    for value in manifest.column(column).unique().to_pylist():
        try:
            if value.strip():
                find(value)
        except KeyError as error:
            problems[value] = error.args[0]
    for value, problem in problems.items():
        rows = np.flatnonzero(np.asarray(pa.compute.equal(manifest.column(column), value), dtype=bool))
        yield Finding(f"unknown_{column}", problem, tuple(f"row {row + 1}" for row in rows.tolist()))


def _find_split(value: str) -> None:
    if value not in SPLITS:
        raise KeyError(f"split {value!r} is not one of {', '.join(SPLITS)}")


def _find_contradicting_labels(manifest: Manifest) -> Iterator[tuple[str, str]]:
    listings = manifest.column("listing_id").to_pylist()
    for column in ("category", "brand"):
        labels_of: dict[str, set[str]] = {}
        for listing, label in zip(listings, manifest.column(column).to_pylist(), strict=True):
            if label:
                labels_of.setdefault(listing, set()).add(label)
        for listing, labels in labels_of.items():
            if len(labels) > 1:
                values = " and ".join(repr(label) for label in sorted(labels))
                yield column, f"listing {listing!r} has the {column} {values}"


def _find_straddling_listings(manifest: Manifest) -> Iterator[tuple[str, str]]:
    splits_of: dict[str, set[str]] = {}
    for listing, split in zip(
        manifest.column("listing_id").to_pylist(), manifest.column("split").to_pylist(), strict=True
    ):
        splits_of.setdefault(listing, set()).add(split or NO_SPLIT)
    for listing, splits in splits_of.items():
        if len(splits) > 1:
            yield " and ".join(sorted(splits)), f"listing {listing!r}"


def _find_duplicates(manifest: Manifest, fingerprints: dict[int, _Fingerprint]) -> Iterator[Finding]:
    splits = [split or NO_SPLIT for split in manifest.column("split").to_pylist()]
    by_hash: dict[bytes, dict[str, int]] = {}
    for row, fingerprint in fingerprints.items():
        by_hash.setdefault(fingerprint.sha256, {}).setdefault(splits[row], row)
    copies = [sorted(rows_by_split.values()) for rows_by_split in by_hash.values()]
    exact = ((rows[0], other) for rows in copies for other in rows[1:])
    near = (
        (a, b) for a, b in _find_near_pairs(fingerprints, splits) if fingerprints[a].sha256 != fingerprints[b].sha256
    )
    for kind, pairs in (("exact_duplicate", exact), ("near_duplicate", near)):
        yield from _group(
            kind,
            (
                (" and ".join(sorted((splits[a], splits[b]))), " and ".join(_describe(manifest, row) for row in (a, b)))
                for a, b in pairs
            ),
        )


def _find_near_pairs(fingerprints: dict[int, _Fingerprint], splits: list[str]) -> Iterator[tuple[int, int]]:
    rows = np.array(list(fingerprints), dtype=np.int64)
    hashes = np.array([fingerprint.phash for fingerprint in fingerprints.values()], dtype=np.uint64)
    codes = np.unique([splits[row] for row in rows], return_inverse=True)[1]
    for i in range(len(rows) - 1):
        distances: npt.NDArray[np.uint8] = np.bitwise_count(hashes[i + 1 :] ^ hashes[i])
        for j in np.flatnonzero((distances <= _NEAR_BITS) & (codes[i + 1 :] != codes[i])):
            yield int(rows[i]), int(rows[i + 1 + j])


def _describe(manifest: Manifest, row: int) -> str:
    return f"row {row + 1} ({manifest.column('split')[row].as_py() or NO_SPLIT}) {manifest.get_photo_url(row)}"


def write_findings(findings: Iterable[Finding], path: Path) -> None:
    """Write every place of every finding as CSV with the columns `kind`, `value` and `place`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "value", "place"])
        writer.writerows((finding.kind, finding.value, place) for finding in findings for place in finding.places)
