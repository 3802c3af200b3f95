"""How far a long piece of work is: a bar on a terminal, log lines elsewhere; and a command's heartbeat."""

import logging
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
    also while a single step takes longer. A command's heartbeat is silent meanwhile.
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
        show = self._refresh_regularly if sys.stderr.isatty() else self._log_regularly
        self._thread = threading.Thread(target=show, daemon=True)
        bar = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}{postfix}]" if total else "{desc} [{elapsed}]"
        self._bar = tqdm(total=total, desc=what, initial=done, bar_format=bar, disable=None if enabled else True)

    def __enter__(self) -> "Progress":
        if self._enabled:
            self._thread.start()
            _shown.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._enabled:
            _shown.discard(self)
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

    def _log_regularly(self) -> None:
        wait_s = FIRST_LOG_AFTER_S
        while not self._closed.wait(wait_s):
            _log.info("%s", self.describe())
            wait_s = LOG_EVERY_S

    def _refresh_regularly(self) -> None:
        while not self._closed.wait(REFRESH_EVERY_S):
            self._bar.refresh()


_shown: set[Progress] = set()
"""What is on show in this process."""


class Heartbeat:
    """Logs how long a command has run, after the first second and then every ten, unless a `Progress` is open.

    So no command is silent for long, whatever it does: importing PyTorch, reading a table, waiting for a server.
    """

    def __init__(self, command: str) -> None:
        """Args:
        command: its name, as typed.
        """
        self._command = command
        self._begun_s = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._log_regularly, daemon=True)

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

    def _log_regularly(self) -> None:
        wait_s = FIRST_LOG_AFTER_S
        while not self._closed.wait(wait_s):
            if not _shown:
                _log.info("%s: %s so far", self._command, describe_seconds(time.monotonic() - self._begun_s))
            wait_s = LOG_EVERY_S


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
