"""Stop a backfill on SIGTERM and Ctrl-C within a bounded time, leaving nothing half written."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from serving.errors import BackfillError
from vision.runtime.cli import EXIT_INTERRUPTED

__all__ = ["HOW_TO_RESUME", "GracefulShutdown", "Interrupted"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

GRACE_PERIOD_S = 8.0
"""How long open shards may take to finish after a stop was requested; then they are abandoned."""
EXIT_DEADLINE_S = 18.0
"""When the process exits even if a thread hangs; a shard counts only once its ledger entry is written."""
HOW_TO_RESUME = "rerun the same command, without --overwrite, to resume"


class Interrupted(Exception):
    """A stop was requested and the job has stopped; rerunning the same command resumes it."""


class GracefulShutdown:
    """Stops in three steps: no new shards, then open shards are abandoned, then the process exits."""

    def __init__(
        self,
        *,
        grace_period_s: float = GRACE_PERIOD_S,
        exit_deadline_s: float = EXIT_DEADLINE_S,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.stop_requested = threading.Event()
        self.abort = threading.Event()
        self._grace_period_s, self._exit_deadline_s = grace_period_s, exit_deadline_s
        self._exit_process = exit_process

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT while the block runs. Call it from the main thread."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, lambda *_: self.stop()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def stop(self) -> None:
        if not self.stop_requested.is_set():
            self.stop_requested.set()
            _log.info("stopping: open shards have %g s to finish", self._grace_period_s)
            threading.Thread(target=self._abort_and_exit, daemon=True).start()

    def take_until_stopped(self, shards: Iterable[_T]) -> Iterator[_T]:
        for shard in shards:
            if self.stop_requested.is_set():
                return
            yield shard

    def raise_interrupted(self, results: Iterator[_T]) -> Iterator[_T]:
        """Pass results on; a failure after the abort is raised as Interrupted, since the abort caused it."""
        try:
            yield from results
        except BackfillError as error:
            if self.abort.is_set():
                raise Interrupted(HOW_TO_RESUME) from error
            raise

    def _abort_and_exit(self) -> None:
        time.sleep(self._grace_period_s)
        self.abort.set()
        time.sleep(self._exit_deadline_s - self._grace_period_s)
        _log.error("a thread does not stop; exiting, open shards are lost")
        self._exit_process(EXIT_INTERRUPTED)
