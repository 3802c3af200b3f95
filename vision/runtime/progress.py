"""How far a long piece of work is: a bar on a terminal, log lines elsewhere; and a command's heartbeat."""

import logging
import math
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["Heartbeat", "Progress", "describe_seconds", "stop_heartbeat"]

_log = logging.getLogger(__name__)

FIRST_LOG_AFTER_S = 1.0
LOG_EVERY_S = 10.0
REFRESH_EVERY_S = 1.0
"""A terminal's bar is drawn again, so that its clock runs while a single step takes long."""


class Progress:
    """Shows one piece of work on stderr while it is open.

    Where stderr is not a terminal, a line is logged after the first second and then every ten, by a thread of its own:
    also while a single step takes longer. A command's heartbeat names nothing else meanwhile.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "photo",
        done: int = 0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        what: names the work.
        total: units in all; None where they cannot be counted.
        unit: singular.
        done: units done before.
        enabled: whether anything is shown.
        """
        self._what, self._total, self._unit = what, total, unit
        self._done = self._done_before = done
        self._clock = clock
        self._begun_s = clock()
        self._details = ""
        self._seconds_left: float | None = None
        self._enabled = enabled
        self._closed = threading.Event()
        self._next_line_s = math.inf
        self._on_terminal = sys.stderr.isatty()
        show = self._refresh_regularly if self._on_terminal else self._log_regularly
        self._thread = threading.Thread(target=show, daemon=True)
        bar = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}{postfix}]" if total else "{desc} [{elapsed}]"
        self._bar = tqdm(total=total, desc=what, initial=done, bar_format=bar, disable=None if enabled else True)

    def __enter__(self) -> "Progress":
        if self._enabled:
            self._next_line_s = time.monotonic() + FIRST_LOG_AFTER_S
            with _claiming:
                _shown.append(self)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._enabled:
            with _claiming:
                _shown.remove(self)
            self._thread.join()
        self._bar.close()

    def advance(self, count: int = 1, *, details: str = "", seconds_left: float | None = None) -> None:
        """Report so many more units.

        Args:
            details: shown behind the count until the next call.
            seconds_left: where the caller knows better than by the mean speed so far.
        """
        self._done += count
        self._details, self._seconds_left = details, seconds_left
        self._bar.set_postfix_str(self._describe_speed(), refresh=False)
        self._bar.update(count)

    def describe(self) -> str:
        """`features: 1024 of 3781 photos, 41 photos/s, 1 min left`."""
        if self._total is None:
            return f"{self._what}: {describe_seconds(self._clock() - self._begun_s)} so far"
        counted = f"{self._what}: {self._done} of {self._total} {self._unit}s"
        speed = self._describe_speed()
        return f"{counted}, {speed}" if speed else counted

    def _describe_speed(self) -> str:
        num_done, seconds = self._done - self._done_before, self._clock() - self._begun_s
        parts = [self._details] if self._details else []
        if num_done and not self._details:
            parts.append(f"{num_done / max(seconds, 1e-9):.3g} {self._unit}s/s")
        left_s = self._seconds_left
        if left_s is None and num_done and self._total:
            left_s = seconds / num_done * (self._total - self._done)
        if left_s is not None:
            parts.append(f"{describe_seconds(left_s)} left")
        return ", ".join(parts)

    def claim_line(self, now_s: float) -> None:
        """Let the caller log the next line, and the one after it be due ten seconds later."""
        global _last_line_s
        _last_line_s, self._next_line_s = now_s, now_s + LOG_EVERY_S

    def log_line(self) -> None:
        """Log a claimed line; a terminal has its bar instead."""
        if not self._on_terminal:
            _log.info("%s", self.describe())

    def _log_regularly(self) -> None:
        while not self._closed.wait(self._next_line_s - time.monotonic()):
            with _claiming:
                if is_due := (now_s := time.monotonic()) >= self._next_line_s:
                    self.claim_line(now_s)
            if is_due:
                self.log_line()

    def _refresh_regularly(self) -> None:
        while not self._closed.wait(REFRESH_EVERY_S):
            self._bar.refresh()


_shown: list[Progress] = []
"""What is on show in this process, the newest last."""
_last_line_s = -math.inf
"""When this process last logged a line of a `Progress` or a `Heartbeat`."""
_claiming = threading.Lock()
"""Held by the thread that finds a line due, so that no other one logs it too, and to change what is on show."""


class Heartbeat:
    """Logs how long a command has run, after the first second and then ten after each line, whoever logged it.

    So no command is silent for long, whatever it does: importing PyTorch, reading a table, waiting for a server. While
    a `Progress` is open, its line is logged instead.
    """

    def __init__(self, command: str) -> None:
        """Args:
        command: its name, as typed.
        """
        self._command = command
        self._begun_s = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._log_regularly, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        _heartbeats.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        _heartbeats.discard(self)

    def stop(self) -> None:
        self._closed.set()
        self._thread.join()

    def _find_due_s(self) -> float:
        is_first = _last_line_s < self._begun_s
        return self._begun_s + FIRST_LOG_AFTER_S if is_first else _last_line_s + LOG_EVERY_S

    def _log_regularly(self) -> None:
        global _last_line_s
        while not self._closed.wait(self._find_due_s() - time.monotonic()):
            with _claiming:
                if (now_s := time.monotonic()) < self._find_due_s():
                    continue
                _last_line_s = now_s
                newest = _shown[-1] if _shown else None
                if newest:
                    newest.claim_line(now_s)
            if newest:
                newest.log_line()
            else:
                _log.info("%s: %s so far", self._command, describe_seconds(now_s - self._begun_s))


_heartbeats: set[Heartbeat] = set()


def stop_heartbeat() -> None:
    """End this process's heartbeat: a server that is ready is silent until it is called."""
    for heartbeat in _heartbeats:
        heartbeat.stop()


def describe_seconds(seconds: float) -> str:
    """`40 s`, `7 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
