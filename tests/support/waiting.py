"""Waiting for a condition, for tests."""

import asyncio
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str = "", *, timeout_s: float = 60) -> None:
    """Return once the condition holds; fail, saying what was waited for, if it does not hold in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(0.05)


async def async_wait_until(condition: Callable[[], object], what: str = "", *, timeout_s: float = 60) -> None:
    """Like `wait_until`, in a running event loop."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what or condition}"
        await asyncio.sleep(0.01)
