"""A manifest's photos as tar shards that WebDataset reads too, and a manifest that points into them."""

import contextlib
import io
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from training.data.renditions import create_rendition
from vision.errors import ManifestError, PhotoError
from vision.images import ALLOWED_FORMATS
from vision.manifest import COLUMNS, Manifest, open_for_replacement
from vision.photo_files import read_photo
from vision.runtime.cpus import count_usable_cores
from vision.runtime.wording import format_count
from vision.taxonomy import Taxonomy

__all__ = ["ShardedManifest", "write_shards"]

_NUM_READERS = 16
_MAX_PHOTOS_IN_MEMORY = 256
"""Photos held in memory; they are read side by side, for a store far away answers slowly but to many."""


@dataclass(frozen=True, kw_only=True)
class ShardedManifest:
    manifest: Manifest
    """As saved in `manifest.parquet` beside the shards, in their order."""
    num_shards: int
    unreadable: tuple[str, ...]
    """What was left out, a line a photo."""


@contextlib.contextmanager
def _open_shard(url: str) -> Iterator[tuple[IO[bytes], tarfile.TarFile]]:
    with open_for_replacement(url) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield file, tar


@dataclass(kw_only=True)
class _ShardWriter:
    """Samples one after another into `shard-000000.tar`, …; each shard takes its name when it is whole."""

    folder: str
    shard_bytes: int
    closing: contextlib.ExitStack
    """Holds the shard that is being written."""
    num_photos: int = 0
    names: list[str] = field(default_factory=list)
    photo_urls: list[pa.Array] = field(default_factory=list)
    """The `photo` values of each finished shard."""
    _photos: list[str] = field(default_factory=list)
    _open: tuple[IO[bytes], tarfile.TarFile] | None = None

    def add(self, photo: bytes, row: dict[str, str]) -> None:
        key = f"{self.num_photos:09d}"
        labels = json.dumps({name: row[name] for name in COLUMNS if name != "photo"}, ensure_ascii=False).encode()
        members = ((f"{key}.{_choose_ending(photo, row['photo'])}", photo), (f"{key}.json", labels))
        num_bytes = sum(tarfile.BLOCKSIZE + len(data) for _, data in members)
        if self._open is not None and self._open[0].tell() + num_bytes > self.shard_bytes:
            self.finish_shard()
        if self._open is None:
            self.names.append(f"shard-{len(self.names):06d}.tar")
            self._open = self.closing.enter_context(_open_shard(posixpath.join(self.folder, self.names[-1])))
        file, tar = self._open
        # USTAR with a short name has a header of exactly one block.
        self._photos.append(f"{self.names[-1]}#{file.tell() + tarfile.BLOCKSIZE}+{len(photo)}")
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        self.num_photos += 1

    def finish_shard(self) -> None:
        self.closing.close()
        self.photo_urls.append(pa.array(self._photos, pa.large_string()))
        self._open, self._photos = None, []


def write_shards(
    manifest: Manifest,
    taxonomy: Taxonomy,
    output: str,
    *,
    shard_bytes: int = 256 << 20,
    max_px: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> ShardedManifest:
    """Write all photos into uncompressed tar shards under `output`, then `taxonomy.json` and `manifest.parquet`.

    Listings come in an order drawn from `seed`, so that a shard is a mix; the photos of one stay together. A sample
    is `000000012.jpg` (the bytes as stored) and `000000012.json` (its other columns), numbered as in the new manifest.

    Args:
        max_px: maximum short side; larger photos are replaced by JPEGs of that size. None: all stay as they are.

    Raises:
        ManifestError: `output` already holds shards; photos that cannot be read, all of them, unless they are skipped.
    """
    fs, folder = fsspec.core.url_to_fs(output)
    fs.makedirs(folder, exist_ok=True)
    _require_unused(fs, folder, output)
    kept: list[int] = []
    unreadable: list[str] = []
    with contextlib.ExitStack() as closing:
        writer = _ShardWriter(folder=output, shard_bytes=shard_bytes, closing=closing)
        try:
            for row, read in _read_photos(manifest, _shuffle_listings(manifest, seed), max_px):
                if isinstance(read, Exception):
                    unreadable.append(f"row {row + 1}: {manifest.get_photo_url(row)}: {read}")
                # Once the shards are lost, the rest is read only to name every photo at once.
                elif skip_unreadable or not unreadable:
                    writer.add(read, manifest.table.slice(row, 1).to_pylist()[0])
                    kept.append(row)
            if unreadable and not skip_unreadable:
                raise ManifestError(
                    f"{format_count(len(unreadable), 'photo')} cannot be read; mend them or give --skip-unreadable:",
                    unreadable,
                )
            if not kept:
                raise ManifestError("no photo can be read:", unreadable)
            writer.finish_shard()
            sharded = _replace_photos(writer.photo_urls, manifest.take(np.array(kept)), output)
            with open_for_replacement(posixpath.join(output, "taxonomy.json")) as file:
                file.write((taxonomy.to_json() + "\n").encode())
            sharded.save(posixpath.join(output, "manifest.parquet"))
        except BaseException:
            for name in writer.names:
                with contextlib.suppress(Exception):
                    fs.rm_file(posixpath.join(folder, name))
            raise
    return ShardedManifest(manifest=sharded, num_shards=len(writer.names), unreadable=tuple(unreadable))


def _require_unused(fs: fsspec.AbstractFileSystem, folder: str, output: str) -> None:
    present = {posixpath.basename(path) for path in fs.ls(folder, detail=False)} if fs.exists(folder) else set()
    used = sorted(name for name in present if name == "manifest.parquet" or re.fullmatch(r"shard-\d+\.tar", name))
    if used:
        # Shards of two runs under one folder would be read as one data set by their pattern.
        raise ManifestError(f"{output} already holds {used[0]}; give another folder, or empty this one")


def _shuffle_listings(manifest: Manifest, seed: int) -> npt.NDArray[np.int64]:
    """Rows, listing by listing in random order."""
    listings = manifest.number_listings()
    random_order = np.random.default_rng(seed).permutation(int(listings.max()) + 1)
    return np.argsort(random_order[listings], kind="stable")


def _read_photos(
    manifest: Manifest, order: npt.NDArray[np.int64], max_px: int | None
) -> Iterator[tuple[int, bytes | OSError | PhotoError]]:
    def read(row: int) -> bytes | OSError | PhotoError:
        try:
            data = read_photo(manifest.get_photo_url(row))
            return create_rendition(data, max_px=max_px) if max_px else data
        except (OSError, PhotoError) as error:
            return error

    # Decoded photos are large, and more of them than cores are no faster.
    num_threads = count_usable_cores() if max_px else _NUM_READERS
    with ThreadPoolExecutor(num_threads) as pool, tqdm(total=len(order), unit="photo", disable=None) as progress:
        for start in range(0, len(order), _MAX_PHOTOS_IN_MEMORY):
            rows = order[start : start + _MAX_PHOTOS_IN_MEMORY].tolist()
            yield from zip(rows, pool.map(read, rows), strict=True)
            progress.update(len(rows))


def _replace_photos(photo_urls: list[pa.Array], manifest: Manifest, output: str) -> Manifest:
    position = COLUMNS.index("photo")
    field_ = manifest.table.schema.field(position)
    return Manifest(manifest.table.set_column(position, field_, pa.chunked_array(photo_urls)), output)


def _choose_ending(photo: bytes, name: str) -> str:
    """How the format that the bytes show is commonly written; the ending that the photo had where they show none."""
    try:
        with Image.open(io.BytesIO(photo), formats=ALLOWED_FORMATS) as opened:
            format_ = (opened.format or "").lower()
        return {"jpeg": "jpg", "mpo": "jpg"}.get(format_, format_)
    # Whatever Pillow thinks of it, the photo is stored as it is; `listing-vision data check` judges it.
    except Exception:
        ending = posixpath.splitext(name)[1][1:].lower()
        return ending if re.fullmatch("[a-z0-9]{1,5}", ending) and ending != "json" else "bin"
