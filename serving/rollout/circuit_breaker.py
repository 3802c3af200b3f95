"""Stops asking a model that does not answer, so that callers learn it at once instead of after their deadline."""

import asyncio
from collections.abc import Callable

__all__ = ["CircuitBreaker"]

FAILURE_THRESHOLD = 5
"""Calls in a row, of callers; one alone may have met a moment's trouble."""


class CircuitBreaker:
    """Opened by failed calls in a row or by failed golden photos; closed only by golden photos answered rightly."""

    def __init__(self, *, on_change: Callable[[], None] = lambda: None) -> None:
        """Args: on_change: called when it has opened or closed."""
        self._num_failures = 0
        self._is_open = False
        self._on_change = on_change
        self.has_opened = False
        """Since this was last set to False by whoever wants to know."""
        self.opened = asyncio.Event()
        """Set while it is open: whoever checks the golden photos need not wait for the next turn."""

    @property
    def is_open(self) -> bool:
        return self._is_open

    def record_success(self) -> None:
        """A caller's photos were answered. Does not close: what answered may be half of what is needed."""
        self._num_failures = 0

    def record_failure(self) -> None:
        """A caller's photos were not answered, and it was the model's fault."""
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
        """The golden photos are answered rightly."""
        self._num_failures = 0
        self.opened.clear()
        if self._is_open:
            self._is_open = False
            self._on_change()
