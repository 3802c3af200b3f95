"""Split listings into those that train a model, certify its thresholds and test it: `split_manifest` writes the split
column again."""

import hashlib
import posixpath
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from vision.errors import ManifestError
from vision.manifest import COLUMNS, SPLITS, UNLABELLED, Manifest, open_for_replacement
from vision.runtime.wording import format_count
from vision.taxonomy import Taxonomy

__all__ = [
    "SplitBy",
    "carve_calibrate",
    "count_splits",
    "find_untrained_leaves",
    "save_split",
    "split_manifest",
]

SplitBy = Literal["listing", "seller", "time"]

MIN_CALIBRATE_LISTINGS = 59
"""Without a single error, this many listings certify 95 % at a confidence of 95 %."""
_TRAIN, _VAL, _CALIBRATE, _TEST = range(4)
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_VALUES_PER_SLICE = 1 << 17


def split_manifest(
    manifest: Manifest,
    *,
    by: SplitBy = "listing",
    val: float = 0.1,
    calibrate: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    keep: Collection[str] = (),
) -> Manifest:
    """The same rows with a new split column; photos of one listing always share a split.

    By listing or seller, a keyed hash of the id alone decides, so listings that come later move no earlier one;
    `val`, `calibrate` and `test` are then expected shares. By time, the newest `test` of the listings are the test
    split, the next newest `calibrate` the calibration split and the next `val` the validation split; among listings of
    the same time the hash decides.

    Args:
        keep: splits whose listings keep theirs; the shares are of all other listings, and nothing is added to these.

    Raises:
        ManifestError: shares that leave nothing to train on; a split to keep that no row has, or with part of a
            listing; by seller, no seller, or a listing of two; by time, rows without a readable `listed_at` or with
            another kind of time than the first row.
    """
    if by not in get_args(SplitBy):
        raise ManifestError(f"cannot split by {by!r}; take one of {', '.join(get_args(SplitBy))}")
    if not (min(val, calibrate, test) >= 0 and val + calibrate + test < 1):
        raise ManifestError(
            f"val {val:g}, calibrate {calibrate:g} and test {test:g} must be 0 or more and leave a share to train on"
        )
    # From the newest, or from the lowest hash.
    shares = [(_TEST, test), (_CALIBRATE, calibrate), (_VAL, val)]
    if keep:
        codes = _read_kept_splits(manifest, keep)
        others = np.flatnonzero(codes == UNLABELLED)
        shares = [(code, share) for code, share in shares if SPLITS[code] not in keep]
        if len(others):
            codes[others] = _split_rows(manifest.take(others), by, shares, seed=seed)
    else:
        codes = _split_rows(manifest, by, shares, seed=seed)
    column = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(SPLITS, pa.string()))
    position = COLUMNS.index("split")
    field = manifest.table.schema.field(position)
    return Manifest(manifest.table.set_column(position, field, column), manifest.base_url)


def carve_calibrate(manifest: Manifest, *, share: float | None = None, seed: int = 0) -> Manifest:
    """The same rows with a share of the train listings as the calibrate split.

    What a model was selected on must not certify it. A manifest that has a calibrate split, or no train split, is
    returned as it is.

    Args:
        share: None: a tenth, where that is enough to certify anything or there is no val split to certify on instead.
    """
    if share is None:
        carved = carve_calibrate(manifest, share=0.1, seed=seed)
        counts = count_splits(carved)
        return manifest if counts["val"][0] and counts["calibrate"][1] < MIN_CALIBRATE_LISTINGS else carved
    found = {split for split, (num_photos, _) in count_splits(manifest).items() if num_photos}
    if not share or "train" not in found or "calibrate" in found:
        return manifest
    return split_manifest(manifest, val=0, calibrate=share, test=0, seed=seed, keep=found - {"train"})


def save_split(manifest: Manifest, taxonomy: Taxonomy, output: str) -> None:
    """Write a manifest, its photos' paths adapted to its folder, and the taxonomy beside it; the folder is made.

    Raises:
        ManifestError: another taxonomy is beside it, or an unknown ending.
    """
    folder = posixpath.dirname(output)
    fs, path = fsspec.core.url_to_fs(folder or ".")
    fs.makedirs(path, exist_ok=True)
    beside = posixpath.join(path, "taxonomy.json")
    if not fs.exists(beside):
        with open_for_replacement(posixpath.join(folder, "taxonomy.json")) as file:
            file.write((taxonomy.to_json() + "\n").encode())
    elif Taxonomy.from_json(fs.cat_file(beside).decode(), source=beside) != taxonomy:
        raise ManifestError(f"{beside} is another taxonomy than the manifest's; give --output in another folder")
    manifest.rebase(folder).save(output)


def _read_kept_splits(manifest: Manifest, keep: Collection[str]) -> npt.NDArray[np.int64]:
    """(num_photos,) index into `SPLITS` of the rows whose split is kept, else -1."""
    # What no other split takes is train.
    if other := [split for split in keep if split not in SPLITS[1:]]:
        raise ManifestError(f"cannot keep split {other[0]!r}; take one of {', '.join(SPLITS[1:])}")
    codes = np.full(len(manifest), UNLABELLED)
    for split in keep:
        rows = np.asarray(pa.compute.equal(manifest.column("split"), split), dtype=bool)
        if not rows.any():
            raise ManifestError(f"no row has the split {split!r} that is to be kept")
        codes[rows] = SPLITS.index(split)
    listings = manifest.number_listings()
    kept_as = np.full(int(listings.max()) + 1, UNLABELLED)
    np.maximum.at(kept_as, listings, codes)
    torn = np.flatnonzero(codes != kept_as[listings])
    if len(torn):
        row = int(torn[0])
        raise ManifestError(
            f"listing {manifest.column('listing_id')[row]} has photos in the split {SPLITS[kept_as[listings[row]]]}, "
            f"which is kept, and in another one ({len(torn)} such rows in all); give each listing one split"
        )
    return codes


def _split_rows(
    manifest: Manifest, by: SplitBy, shares: Sequence[tuple[int, float]], *, seed: int
) -> npt.NDArray[np.int64]:
    """(num_photos,) index into `SPLITS`."""
    # Groups and distinct ids both count by first appearance.
    listings = manifest.number_listings()
    if by == "time":
        split_of_listing = _split_by_time(manifest, listings, shares, seed=seed)
    else:
        place = _hash_ids(manifest.column("listing_id").unique(), "listing", seed)
        if by == "seller":
            place = _place_by_seller(manifest, listings, place, seed)
        bounds = np.cumsum([share for _, share in shares])
        codes_in_order = np.array([*(code for code, _ in shares), _TRAIN])
        split_of_listing = codes_in_order[np.searchsorted(bounds, place, side="right")]
    return split_of_listing[listings]


def count_splits(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Split to its number of photos and of listings."""
    listings = manifest.number_listings()
    counts = {}
    for split in SPLITS:
        chosen = np.asarray(pa.compute.equal(manifest.column("split"), split), dtype=bool)
        counts[split] = (int(chosen.sum()), int(np.count_nonzero(np.bincount(listings[chosen]))))
    return counts


def find_untrained_leaves(manifest: Manifest, taxonomy: Taxonomy) -> list[str]:
    """Path names of leaf categories that another split has and train lacks; labels unknown to the taxonomy are left
    out, `listing-vision data check` names them."""
    leaves = set(taxonomy.leaf_ids)
    pairs = manifest.table.select(["split", "category"]).group_by(["split", "category"]).aggregate([]).to_pylist()
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for pair in pairs:
        if not pair["category"].strip():
            continue
        try:
            seen[pair["split"] == "train"].add(taxonomy.find_category(pair["category"]))
        except KeyError:
            continue
    return [taxonomy.format_path(leaf) for leaf in taxonomy.leaf_ids if leaf in (seen[False] - seen[True]) & leaves]


def _split_by_time(
    manifest: Manifest, listings: npt.NDArray[np.int64], shares: Sequence[tuple[int, float]], *, seed: int
) -> npt.NDArray[np.int64]:
    num_listings = int(listings.max()) + 1
    newest = np.full(num_listings, np.iinfo(np.int64).min)
    np.maximum.at(newest, listings, _read_times(manifest))
    place = _hash_ids(manifest.column("listing_id").unique(), "listing", seed)
    newest_first = np.lexsort((place, newest))[::-1]
    split = np.full(num_listings, _TRAIN)
    begin = 0
    for code, share in shares:
        end = begin + round(share * num_listings)
        split[newest_first[begin:end]] = code
        begin = end
    return split


def _place_by_seller(
    manifest: Manifest, listings: npt.NDArray[np.int64], place: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.float64]:
    """`place` of each listing, replaced by its seller's where one is known.

    Raises:
        ManifestError: no seller is known, or a listing has two.
    """
    sellers, codes = _encode_column(manifest, "seller_id")
    codes[np.asarray(pa.compute.equal(manifest.column("seller_id"), ""), dtype=bool)] = UNLABELLED
    if (codes == UNLABELLED).all():
        raise ManifestError("no row has a seller_id; fill it in, or split by listing")
    seller_of = np.full(len(place), UNLABELLED)
    np.maximum.at(seller_of, listings, codes)
    torn = np.flatnonzero((codes != UNLABELLED) & (codes != seller_of[listings]))
    if len(torn):
        row = int(torn[0])
        raise ManifestError(
            f"row {row + 1}: listing {manifest.column('listing_id')[row]} has the sellers "
            f"{sellers[codes[row]]} and {sellers[seller_of[listings[row]]]} ({len(torn)} such rows in all); "
            "give each listing one seller_id"
        )
    known = seller_of != UNLABELLED
    return np.where(known, _hash_ids(sellers, "seller", seed)[seller_of], place)


def _hash_ids(ids: pa.Array, kind: str, seed: int) -> npt.NDArray[np.float64]:
    """(len(ids),) in [0, 1): where a hash keyed with the seed puts each id, the same in every manifest."""
    keyed = hashlib.blake2b(f"{kind}\0".encode(), digest_size=8, key=str(seed).encode())

    def hashed(text: str) -> bytes:
        one = keyed.copy()
        one.update(text.encode())
        return one.digest()

    digests = b"".join(hashed(text) for text in _iterate_values(ids))
    # The upper 53 bits, what a float64 holds exactly.
    return (np.frombuffer(digests, ">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _encode_column(manifest: Manifest, column: str) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The distinct values, and for each row which one it has."""
    encoded = manifest.column(column).dictionary_encode()
    codes = np.concatenate([np.asarray(chunk.indices, dtype=np.int64) for chunk in encoded.chunks])
    return encoded.chunk(0).dictionary, codes


def _iterate_values(texts: pa.Array) -> Iterator[str]:
    for start in range(0, len(texts), _VALUES_PER_SLICE):
        yield from texts.slice(start, _VALUES_PER_SLICE).to_pylist()


def _read_times(manifest: Manifest) -> npt.NDArray[np.int64]:
    """(num_photos,) microseconds; the zero point is the same for all rows."""
    values, codes = _encode_column(manifest, "listed_at")
    read = [_read_time(text) for text in _iterate_values(values)]
    _require_none(
        manifest, codes, [kind == "missing" for kind, _ in read], "no listed_at", "fill them in or leave them out"
    )
    unreadable = "a listed_at that is not an ISO 8601 date or time"
    way_out = "write it as 2026-01-31 or 2026-01-31T12:00:00Z"
    _require_none(manifest, codes, [kind == "unreadable" for kind, _ in read], unreadable, way_out)
    first = read[codes[0]][0]
    another = f"another kind of listed_at than row 1, which has {first}"
    _require_none(manifest, codes, [kind != first for kind, _ in read], another, "write all of them alike")
    return np.array([time for _, time in read], dtype=np.int64)[codes]


def _require_none(manifest: Manifest, codes: npt.NDArray[np.int64], bad: list[bool], what: str, way_out: str) -> None:
    rows = np.flatnonzero(np.array(bad)[codes])
    if len(rows):
        value = manifest.column("listed_at")[int(rows[0])].as_py()
        raise ManifestError(
            f"{format_count(len(rows), 'row', 'has')} {what}, the first is row {rows[0] + 1} ({value!r}); {way_out}"
        )


def _read_time(text: str) -> tuple[str, int]:
    """What kind of time the text is, and its microseconds since 1970."""
    if not text:
        return "missing", 0
    try:
        if len(text) <= len("2026-01-31"):
            return "a date", (date.fromisoformat(text) - _EPOCH.date()) // _MICROSECOND
        read = datetime.fromisoformat(text)
        if read.tzinfo is None:
            return "a time without a zone", (read - _EPOCH) // _MICROSECOND
        return "a time with a zone", (read - _EPOCH.replace(tzinfo=UTC)) // _MICROSECOND
    except ValueError:
        return "unreadable", 0
