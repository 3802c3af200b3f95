"""The processes of a model in Triton: which of them serve, and when the model may be reloaded."""

import time
from collections.abc import Callable, Sequence

__all__ = ["RELOAD_BACKOFF_S", "RESTART_BACKOFF_S", "ModelProcesses", "RecoveryBackoff"]

RELOAD_BACKOFF_S = (0.0, 0.0, 10.0, 30.0, 60.0, 120.0)
"""Time from a reload to the next one, by the number of recent ones; the last one for all larger numbers."""
RESTART_BACKOFF_S = (0.0, 0.5, 2.0, 5.0, 15.0, 30.0)
RECENT_S = 600.0
MAX_LOAD_S = 120.0
"""Triton continues a load whose caller has given up; after this time it is taken as failed."""


class RecoveryBackoff:
    """Says when to try again: at once after a rare failure, later the more attempts there were lately."""

    def __init__(self, delays_s: Sequence[float], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._delays_s = delays_s
        self._clock = clock
        self._attempts_s: list[float] = []

    def is_due(self) -> bool:
        now_s = self._clock()
        self._attempts_s = [attempt_s for attempt_s in self._attempts_s if now_s - attempt_s < RECENT_S]
        delay_s = self._delays_s[min(len(self._attempts_s), len(self._delays_s) - 1)]
        return not self._attempts_s or now_s - self._attempts_s[-1] >= delay_s

    def record_attempt(self) -> None:
        self._attempts_s.append(self._clock())


class ModelProcesses:
    """The state of one model between checks, whatever became of its reloads.

    A reload starts a second set of processes beside the first, so a model has never more than two sets: there is no
    other reload before the new set is complete or has failed, and the set that is not needed has ended.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._backoff = RecoveryBackoff(RELOAD_BACKOFF_S, clock=clock)
        self._serving: frozenset[int] = frozenset()
        self._num_wanted = 0
        """As many as the model had when it was last known to be complete; 0: unknown."""
        self._before_reload: frozenset[int] | None = None
        """Processes before a reload that is not known to have ended."""
        self._reloaded_at_s = 0.0

    @property
    def is_known(self) -> bool:
        return self._num_wanted > 0

    def record(self, living: frozenset[int]) -> None:
        """Take the living processes as the complete set."""
        self._serving, self._num_wanted, self._before_reload = living, len(living), None

    def observe(self, living: frozenset[int]) -> frozenset[int]:
        """Note the living processes; return those to be ended: replaced by a reload, or started by a failed one."""
        if self._before_reload is None:
            return frozenset()
        started = living - self._before_reload
        if len(started) >= max(1, self._num_wanted):
            before = living - started
            self.record(started)
            return before
        if self._clock() - self._reloaded_at_s < MAX_LOAD_S:
            return frozenset()
        self._serving, self._before_reload = living - started, None
        return started

    def is_complete(self, living: frozenset[int]) -> bool:
        return len(self._serving & living) >= self._num_wanted

    def may_reload(self, living: frozenset[int]) -> bool:
        """Return whether no reload is under way, its second set has room, and the last one was long enough ago."""
        return self._before_reload is None and len(living) <= max(1, self._num_wanted) and self._backoff.is_due()

    def begin_reload(self, living: frozenset[int]) -> None:
        self._before_reload, self._reloaded_at_s = living, self._clock()
        self._backoff.record_attempt()
