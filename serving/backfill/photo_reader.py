"""Read stored photos; retry errors that may be temporary."""

import threading

import tenacity

from serving.backfill.output import Failure
from vision.manifest import read_photo, resolve_photo_url

__all__ = ["PhotoReader"]

NOT_FOUND = "PHOTO_NOT_FOUND"
READ_FAILED = "PHOTO_READ_FAILED"
MAX_ATTEMPTS = 5
INITIAL_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0

_NOT_FOUND_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class PhotoReader:
    """Reads photos by path or URL; safe to use from many threads."""

    def __init__(
        self,
        base_url: str,
        *,
        stop: threading.Event,
        max_attempts: int = MAX_ATTEMPTS,
        initial_backoff_s: float = INITIAL_BACKOFF_S,
    ) -> None:
        """Args:
        base_url: folder or URL that relative photo paths start from.
        stop: when set, nothing is retried.
        """
        self._base_url = base_url
        self._retry_policy = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, OSError) and not _is_permanent(error)),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(max_attempts), tenacity.stop_when_event_set(stop)),
            # Pauses double and are drawn, so that the photos of a failing store are not all retried at the same time.
            wait=tenacity.wait_random_exponential(multiplier=initial_backoff_s, max=MAX_BACKOFF_S),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )

    def read(self, photo: str) -> bytes | Failure:
        """Return the photo's bytes, or why it cannot be read."""
        url = resolve_photo_url(self._base_url, photo)
        try:
            return read_photo(url)
        except OSError as error:
            if isinstance(error, _NOT_FOUND_ERRORS):
                return Failure(reason=NOT_FOUND, message=str(error))
        # The retry policy comes second, since it costs more than reading a local photo.
        try:
            return self._retry_policy.copy()(read_photo, url)
        except OSError as error:
            return Failure(
                reason=NOT_FOUND if isinstance(error, _NOT_FOUND_ERRORS) else READ_FAILED, message=str(error)
            )


def _is_permanent(error: BaseException) -> bool:
    """Whether a retry would fail in the same way."""
    return isinstance(error, (*_NOT_FOUND_ERRORS, PermissionError))
