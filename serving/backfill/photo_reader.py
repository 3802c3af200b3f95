"""Reading stored photos: what may pass is tried again, what will not is said at once."""

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
    """Safe to use from many threads."""

    def __init__(
        self,
        base_url: str,
        *,
        stop: threading.Event,
        max_attempts: int = MAX_ATTEMPTS,
        initial_backoff_s: float = INITIAL_BACKOFF_S,
    ) -> None:
        """Args:
        base_url: where relative photo paths start.
        stop: when set, nothing is tried again.
        """
        self._base_url = base_url
        self._retry_policy = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, OSError) and not _is_permanent(error)),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(max_attempts), tenacity.stop_when_event_set(stop)),
            # Doubling, each pause drawn from its range: photos of one store that fails do not all come back together.
            wait=tenacity.wait_random_exponential(multiplier=initial_backoff_s, max=MAX_BACKOFF_S),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )

    def read(self, photo: str) -> bytes | Failure:
        """The photo's bytes, or why they cannot be had."""
        url = resolve_photo_url(self._base_url, photo)
        try:
            return read_photo(url)
        except OSError as error:
            if isinstance(error, _NOT_FOUND_ERRORS):
                return Failure(reason=NOT_FOUND, message=str(error))
        # Only now, for what tries again costs more than a photo's reading.
        try:
            return self._retry_policy.copy()(read_photo, url)
        except OSError as error:
            return Failure(
                reason=NOT_FOUND if isinstance(error, _NOT_FOUND_ERRORS) else READ_FAILED, message=str(error)
            )


def _is_permanent(error: BaseException) -> bool:
    """Whether it would be the same the next time."""
    return isinstance(error, (*_NOT_FOUND_ERRORS, PermissionError))
