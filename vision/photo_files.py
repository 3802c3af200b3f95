"""Read stored photos: files, fsspec URLs and parts of tar shards."""

import os
import posixpath
import re
import threading
import time
from typing import cast

import fsspec
import fsspec.asyn
import tenacity
from fsspec.implementations.local import LocalFileSystem

__all__ = [
    "INITIAL_BACKOFF_S",
    "MAX_ATTEMPTS",
    "NOT_FOUND_ERRORS",
    "PHOTO_TIMEOUT_S",
    "read_photo",
    "read_photo_with_retries",
    "resolve_photo_url",
]

PHOTO_TIMEOUT_S = 30.0
MAX_ATTEMPTS = 5
INITIAL_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0

NOT_FOUND_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_ERRORS_BY_HTTP_STATUS: dict[int | None, type[OSError]] = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}


class _WrongPlace(OSError):
    """There is no such photo in a shard, or no driver for the URL."""


_PERMANENT_ERRORS = (*NOT_FOUND_ERRORS, PermissionError, _WrongPlace)
"""A retry would fail in the same way."""


def resolve_photo_url(base_url: str, photo: str) -> str:
    """Return where a photo of a manifest in `base_url` lies; `photo` may be relative, a path, or a URL."""
    return photo if "://" in photo or photo.startswith("/") else posixpath.join(base_url, photo)


def read_photo(url: str, *, timeout_s: float = PHOTO_TIMEOUT_S) -> bytes:
    """Return the stored bytes of one photo, by path or fsspec URL, or from a tar shard by `….tar#offset+size`.

    Args:
        timeout_s: how long a server may take; file systems that block, such as local disks, have no limit.

    Raises:
        FileNotFoundError: it does not exist (HTTP 404, 410).
        PermissionError: it may not be read (HTTP 401, 403).
        TimeoutError: the server has not answered in time.
        OSError: it cannot be read.
    """
    try:
        if ".tar#" in url:
            return _read_from_shard(url, timeout_s)
        if "://" not in url:
            with open(url, "rb") as file:
                return file.read()
        fs, path = fsspec.core.url_to_fs(url)
        return _fetch(fs, path, timeout_s)
    except OSError:
        raise
    except ImportError as error:
        raise _WrongPlace(f"{url}: {error}") from error  # fsspec names the package that is missing
    # Each file system behind fsspec raises its own types.
    except Exception as error:
        kind = _ERRORS_BY_HTTP_STATUS.get(getattr(error, "status", None), OSError)
        raise kind(f"{type(error).__name__}: {error}") from error


def read_photo_with_retries(
    url: str,
    *,
    stop: threading.Event | None = None,
    timeout_s: float = PHOTO_TIMEOUT_S,
    max_attempts: int = MAX_ATTEMPTS,
    initial_backoff_s: float = INITIAL_BACKOFF_S,
) -> bytes:
    """Return what `read_photo` returns, tried again while the store fails in a way that may pass.

    Args:
        stop: when set, nothing is tried again.
        timeout_s: how long a server may take for a photo, all attempts together.
        max_attempts: the first one included.

    Raises:
        OSError: the error of the last attempt, as `read_photo` raises it.
    """
    began_s = time.monotonic()
    try:
        return read_photo(url, timeout_s=timeout_s)
    except OSError as error:
        if isinstance(error, _PERMANENT_ERRORS):
            raise
        first_errors = [error]
    # The retry policy comes second, since it costs more than reading a local photo.
    deadline_s = began_s + timeout_s
    stop = stop or threading.Event()

    def attempt() -> bytes:
        if first_errors:
            raise first_errors.pop()
        return read_photo(url, timeout_s=deadline_s - time.monotonic())

    policy = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_not_exception_type(_PERMANENT_ERRORS),
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(max_attempts),
            tenacity.stop_before_delay(deadline_s - time.monotonic()),
            tenacity.stop_when_event_set(stop),
        ),
        # Pauses double and are drawn, so that the photos of a failing store are not all retried at the same time.
        wait=tenacity.wait_random_exponential(multiplier=initial_backoff_s, max=MAX_BACKOFF_S),
        sleep=tenacity.sleep_using_event(stop),
        reraise=True,
    )
    return policy(attempt)


def _fetch(fs: fsspec.AbstractFileSystem, path: str, timeout_s: float, **byte_range: int) -> bytes:
    # One request; an opened file would first ask for its size.
    if not fs.async_impl:
        return cast(bytes, fs.cat_file(path, **byte_range))
    try:
        return cast(bytes, fsspec.asyn.sync(fs.loop, fs._cat_file, path, timeout=timeout_s, **byte_range))
    except TimeoutError as error:
        raise TimeoutError(f"{path}: the server has not answered within {timeout_s:.3g} s") from error


def _read_from_shard(url: str, timeout_s: float) -> bytes:
    shard, _, byte_range = url.rpartition("#")
    parsed = re.fullmatch(r"(\d{1,18})\+(\d{1,18})", byte_range, re.ASCII)
    if parsed is None:
        raise _WrongPlace(
            f"photo {url}: {byte_range!r} is not offset+size in bytes; `listing-vision data shard` writes them"
        )
    offset, size = int(parsed[1]), int(parsed[2])
    fs, path = fsspec.core.url_to_fs(shard) if "://" in shard else (None, shard)
    if fs is None or isinstance(fs, LocalFileSystem):
        with open(path, "rb") as file:
            file.seek(offset)
            # No more is allocated than there is, whatever size is asked for.
            data = file.read(min(size, max(0, os.fstat(file.fileno()).st_size - offset)))
    else:
        data = _fetch(fs, path, timeout_s, start=offset, end=offset + size) if size else b""
    if len(data) != size:
        raise _WrongPlace(
            f"photo {url}: the shard has {len(data)} of its {size} bytes; it is cut short or another one, "
            "copy it again or write it again with `listing-vision data shard`"
        )
    return data
