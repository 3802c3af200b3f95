"""A limit for log lines that repeat, so that whoever causes them cannot fill the disk with them."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["RepeatedLineFilter", "limit_repeated_lines"]

MAX_LINES = 100
"""Warnings and errors of one statement per period."""
PERIOD_S = 10.0


@dataclass
class _Statement:
    began_s: float
    num_lines: int = 0


class RepeatedLineFilter(logging.Filter):
    """Drops warnings and errors of a statement that logs too many, and says in the lines that stay how many.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._statements: dict[tuple[str, int], _Statement] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            now_s = self._clock()
            key = (record.pathname, record.lineno)
            statement = self._statements.setdefault(key, _Statement(now_s))
            num_dropped = 0
            if now_s - statement.began_s >= PERIOD_S:
                num_dropped = max(0, statement.num_lines - MAX_LINES)
                statement = self._statements[key] = _Statement(now_s)
            statement.num_lines += 1
        if num_dropped:
            _append(record, f"{num_dropped} lines like this one were dropped before")
        if statement.num_lines == MAX_LINES:
            _append(record, f"further lines like this one are dropped for up to {PERIOD_S:g} s")
        return statement.num_lines <= MAX_LINES


def _append(record: logging.LogRecord, text: str) -> None:
    record.msg, record.args = f"{record.getMessage()} ({text})", None


def limit_repeated_lines() -> None:
    """Limit what this process logs, for a service; a batch job names each of its photos instead."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(RepeatedLineFilter())
