"""Read stored photos; retry errors that may be temporary."""

import threading
import time
from dataclasses import dataclass

import tenacity

from vision.photo_files import PHOTO_TIMEOUT_S, read_photo, resolve_photo_url

__all__ = ["PhotoFailure", "PhotoReader"]

NOT_FOUND = "PHOTO_NOT_FOUND"
READ_FAILED = "PHOTO_READ_FAILED"
MAX_ATTEMPTS = 5
INITIAL_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0

_NOT_FOUND_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PERMANENT_ERRORS = (*_NOT_FOUND_ERRORS, PermissionError)
"""A retry would fail in the same way."""


@dataclass(frozen=True, kw_only=True)
class PhotoFailure:
    """A photo that could not be used."""

    reason: str
    """A stable name: that of a PhotoError, `PHOTO_NOT_FOUND` or `PHOTO_READ_FAILED`."""
    message: str


class PhotoReader:
    """Reads photos by path or URL; safe to use from many threads."""

    def __init__(
        self,
        base_url: str,
        *,
        stop: threading.Event,
        timeout_s: float = PHOTO_TIMEOUT_S,
        max_attempts: int = MAX_ATTEMPTS,
        initial_backoff_s: float = INITIAL_BACKOFF_S,
    ) -> None:
        """Args:
        base_url: folder or URL that relative photo paths start from.
        stop: when set, nothing is retried.
        timeout_s: how long a server may take for a photo, all attempts together.
        max_attempts: the first one included.
        """
        self._base_url = base_url
        self._stop = stop
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._initial_backoff_s = initial_backoff_s

    def read(self, photo: str) -> bytes | PhotoFailure:
        """Return the photo's bytes, or why it cannot be read."""
        url = resolve_photo_url(self._base_url, photo)
        began_s = time.monotonic()
        try:
            try:
                return read_photo(url, timeout_s=self._timeout_s)
            except OSError as error:
                if isinstance(error, _PERMANENT_ERRORS):
                    raise
                # The retry policy comes second, since it costs more than reading a local photo.
                return self._retry(url, error, deadline_s=began_s + self._timeout_s)
        except OSError as error:
            reason = NOT_FOUND if isinstance(error, _NOT_FOUND_ERRORS) else READ_FAILED
            return PhotoFailure(reason=reason, message=str(error))

    def _retry(self, url: str, first_error: OSError, *, deadline_s: float) -> bytes:
        """Return the bytes of a later attempt than the one that failed, or raise the last error."""
        first_errors = [first_error]

        def attempt() -> bytes:
            if first_errors:
                raise first_errors.pop()
            return read_photo(url, timeout_s=deadline_s - time.monotonic())

        policy = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_not_exception_type(_PERMANENT_ERRORS),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self._max_attempts),
                tenacity.stop_before_delay(deadline_s - time.monotonic()),
                tenacity.stop_when_event_set(self._stop),
            ),
            # Pauses double and are drawn, so that the photos of a failing store are not all retried at the same time.
            wait=tenacity.wait_random_exponential(multiplier=self._initial_backoff_s, max=MAX_BACKOFF_S),
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        return policy(attempt)
