"""Files at any fsspec URL, written atomically, and durable on a local disk."""

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serving.errors import StorageError
from vision.runtime.files import replace_file, write_atomically

__all__ = ["Store"]

_CHUNK_BYTES = 1 << 20
_MARKER = ".listing-vision"
READ_BATCH_SIZE = 500
"""How many small files are read in one round trip."""


class Store:
    """A folder of files. Paths are relative to it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, root = fsspec.core.url_to_fs(self.url)
        self._root = root.rstrip("/")
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._requires_marker = False

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._fs

    def require_same_folder(self) -> bool:
        """From now on, refuse to write where the folder is no longer the one of this moment; return whether it is new.

        A local folder may be removed, or lie on a disk that is unmounted. Writing would then create it again, on the
        disk below the mount point, where nobody looks for the files. A hidden file marks the folder.
        """
        if not self.is_local:
            return False
        is_new = not os.path.isdir(self._root)
        self.write(_MARKER, b"")
        self._requires_marker = True
        return is_new

    def full_path(self, path: str) -> str:
        """Return the path or the URL by which other programs open the file."""
        return posixpath.join(self._root, path) if self.is_local else posixpath.join(self.url, path)

    def exists(self, path: str) -> bool:
        """Whether the file exists. Raises OSError where that is unknown; fsspec's own `exists` returns False then."""
        try:
            self._fs.info(self._resolve(path))
        except FileNotFoundError:
            return False
        return True

    def list_files(self, folder: str) -> list[str]:
        """Return all files below a folder, sorted; none if it does not exist. Raises OSError: it cannot be listed."""
        if self.is_local:
            return sorted(self._walk(self._resolve(folder)))
        with contextlib.suppress(FileNotFoundError):
            # fsspec caches listings; the cache lacks what another process has written since.
            self._fs.invalidate_cache()
            return sorted(self._to_relative(found) for found in self._fs.find(self._resolve(folder)))
        return []

    def _walk(self, folder: str) -> Iterator[str]:
        """Yield the files of a folder; raise where it cannot be listed, since fsspec would silently leave it out."""
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir():
                yield from self._walk(entry.path)
            else:
                yield self._to_relative(entry.path)

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        return cast(bytes, self._fs.cat_file(self._resolve(path)))

    def read_json(self, path: str) -> Any:
        """Raises FileNotFoundError, or StorageError where it is not JSON."""
        return self._parse_json(path, self.read(path))

    def read_json_files(self, paths: Sequence[str]) -> Iterator[Any]:
        """Yield the content of each file, read in batches where each takes a round trip."""
        if self.is_local:
            yield from map(self.read_json, paths)
            return
        for begin in range(0, len(paths), READ_BATCH_SIZE):
            some = paths[begin : begin + READ_BATCH_SIZE]
            found = self._fs.cat([self._resolve(path) for path in some])
            yield from (self._parse_json(path, found[self._resolve(path)]) for path in some)

    def _parse_json(self, path: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.full_path(path)} is not readable: {error}; was it written by hand?") from error

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        with self._fs.open(self._resolve(path), "rb") as file:
            yield cast(IO[bytes], file)

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing the one before; a local file survives a power failure.

        Raises:
            OSError: it cannot be written; nothing of a local file remains then.
            StorageError: the folder has been removed or unmounted since `require_same_folder`.
        """
        at = self._resolve(path)
        if self._requires_marker and not self.exists(_MARKER):
            raise StorageError(f"{self.url} has been removed or unmounted; mount it, or restart to create it")
        self._fs.makedirs(posixpath.dirname(at), exist_ok=True)
        if not self.is_local:
            self._fs.pipe_file(at, data)
            return
        write_atomically(Path(at), data)

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def upload(self, path: str, local: Path) -> None:
        """Copy a local file here atomically."""
        at = self._resolve(path)
        self._fs.makedirs(posixpath.dirname(at), exist_ok=True)
        if self.is_local:
            with replace_file(Path(at)) as temporary:
                shutil.copyfile(local, temporary)
        else:
            self._fs.put_file(str(local), at)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._resolve(path))

    def remove_all(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._root, recursive=True)

    def sha256(self, path: str) -> str:
        """Raises FileNotFoundError."""
        digest = hashlib.sha256()
        with self.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @contextlib.contextmanager
    def lock(self, path: str) -> Iterator[None]:
        """Lock the folder against other processes of this machine. There is no lock across machines.

        Raises:
            StorageError: another process holds the lock.
        """
        lock_file = self._lock_file(path)
        os.makedirs(posixpath.dirname(lock_file), exist_ok=True)
        with open(lock_file, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StorageError(
                    f"another process (pid {file.read().strip()}) writes to {self.url}; wait for it, or stop it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def is_locked(self, path: str) -> bool:
        """Whether another process of this machine holds the lock; writes nothing, so the folder may be read-only."""
        try:
            with open(self._lock_file(path)) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _lock_file(self, path: str) -> str:
        """Return the path of the lock: among the files, or for remote storage in this machine's temporary folder."""
        if self.is_local:
            return self._resolve(path)
        return posixpath.join(tempfile.gettempdir(), f"listing-vision-{hashlib.sha256(self.url.encode()).hexdigest()}")

    def _resolve(self, path: str) -> str:
        return posixpath.join(self._root, path)

    def _to_relative(self, found: str) -> str:
        return found[len(self._root) :].lstrip("/")
