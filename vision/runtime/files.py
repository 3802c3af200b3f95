"""Files that are written whole or not at all, and their hashes."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["compute_sha256", "replace_file", "sync_to_disk", "write_atomically"]


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is flushed to disk and renamed to `path`.

    On an exception it is removed, and what was at `path` stays. The name ends in `.tmp` and differs between processes.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_to_disk(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes: a reader sees the old content or all of the new one, also after a power failure."""
    with replace_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync_to_disk(path: Path) -> None:
    """Flush a file or a folder's entries (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compute_sha256(path: Path) -> str:
    """Return the hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
