"""Noticing that files have been replaced while they are used."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["CHECK_INTERVAL_S", "FileWatcher"]

_log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0


class FileWatcher:
    """Compares time and size of files with those of the last check, once a second at most."""

    def __init__(self, *paths: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._next_check_s = clock()
        self._stamp: tuple[tuple[int, int], ...] = ()
        self.has_changed()

    def has_changed(self) -> bool:
        """Whether the files differ from those of the last call; a file that cannot be read counts as unchanged."""
        now_s = self._clock()
        if now_s < self._next_check_s:
            return False
        self._next_check_s = now_s + CHECK_INTERVAL_S
        try:
            stamp = tuple((found.st_mtime_ns, found.st_size) for found in (path.stat() for path in self._paths))
        except OSError as error:
            _log.warning("%s; its last content stays in use", error)
            return False
        before, self._stamp = self._stamp, stamp
        return stamp != before
