"""Reading stored photos: what may pass is tried again, what will not is said at once."""

import threading

import tenacity

from serving.backfill.output import Failure
from vision.manifest import photo_bytes, photo_url

__all__ = ["Reader"]

NOT_FOUND = "PHOTO_NOT_FOUND"
READ_FAILED = "PHOTO_READ_FAILED"
ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Reader:
    """Safe to use from many threads."""

    def __init__(
        self,
        base_url: str,
        *,
        stop: threading.Event,
        attempts: int = ATTEMPTS,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """Args:
        base_url: where relative photo paths start.
        stop: when set, nothing is tried again.
        """
        self._base_url = base_url
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, OSError) and not _for_good(error)),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), tenacity.stop_when_event_set(stop)),
            # Doubling, each pause drawn from its range: photos of one store that fails do not all come back together.
            wait=tenacity.wait_random_exponential(multiplier=first_pause_s, max=LONGEST_PAUSE_S),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )

    def read(self, photo: str) -> bytes | Failure:
        """The photo's bytes, or why they cannot be had."""
        url = photo_url(self._base_url, photo)
        try:
            return photo_bytes(url)
        except OSError as error:
            if isinstance(error, _MISSING):
                return Failure(reason=NOT_FOUND, message=str(error))
        # Only now, for what tries again costs more than a photo's reading.
        try:
            return self._retrying.copy()(photo_bytes, url)
        except OSError as error:
            return Failure(reason=NOT_FOUND if isinstance(error, _MISSING) else READ_FAILED, message=str(error))


def _for_good(error: BaseException) -> bool:
    """Whether it would be the same the next time."""
    return isinstance(error, (*_MISSING, PermissionError))
