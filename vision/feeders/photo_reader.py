"""Read stored photos; retry errors that may be temporary."""

import threading
from dataclasses import dataclass

from vision.photo_files import (
    INITIAL_BACKOFF_S,
    MAX_ATTEMPTS,
    NOT_FOUND_ERRORS,
    PHOTO_TIMEOUT_S,
    read_photo_with_retries,
    resolve_photo_url,
)

__all__ = ["PhotoFailure", "PhotoReader"]

NOT_FOUND = "PHOTO_NOT_FOUND"
READ_FAILED = "PHOTO_READ_FAILED"


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
        try:
            return read_photo_with_retries(
                resolve_photo_url(self._base_url, photo),
                stop=self._stop,
                timeout_s=self._timeout_s,
                max_attempts=self._max_attempts,
                initial_backoff_s=self._initial_backoff_s,
            )
        except OSError as error:
            reason = NOT_FOUND if isinstance(error, NOT_FOUND_ERRORS) else READ_FAILED
            return PhotoFailure(reason=reason, message=str(error))
