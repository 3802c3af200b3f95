"""A circuit breaker around a model: callers of a failing model are refused at once, not after their deadline."""

import asyncio
from collections.abc import Callable

__all__ = ["CircuitBreaker"]

FAILURE_THRESHOLD = 5
"""Failed calls in a row that open it."""


class CircuitBreaker:
    """Opened by failed calls in a row or by failed golden photos; closed only by golden photos that pass."""

    def __init__(self, *, on_change: Callable[[], None] = lambda: None) -> None:
        """Args: on_change: called after it opened or closed."""
        self._num_failures = 0
        self._is_open = False
        self._on_change = on_change
        self.has_opened = False
        """Whether it has opened since this was last set to False."""
        self.opened = asyncio.Event()
        """Set while it is open, so that a health check can start at once."""

    @property
    def is_open(self) -> bool:
        return self._is_open

    def record_success(self) -> None:
        """Record a successful call. It does not close the breaker: only golden photos prove the model."""
        self._num_failures = 0

    def record_failure(self) -> None:
        """Record a call that failed by the model's fault."""
        self._num_failures += 1
        if self._num_failures >= FAILURE_THRESHOLD:
            self.open()

    def open(self) -> None:
        self.has_opened = True
        self.opened.set()
        if not self._is_open:
            self._is_open = True
            self._on_change()

    def close(self) -> None:
        """Close it: the golden photos passed."""
        self._num_failures = 0
        self.opened.clear()
        if self._is_open:
            self._is_open = False
            self._on_change()
