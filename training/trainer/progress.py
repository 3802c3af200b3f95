"""Progress of a run: a progress bar or log lines, TensorBoard, and the time spent waiting for data."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

__all__ = ["Progress", "StepTimes"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LOG_EVERY_STEPS = 10
_LOG_EVERY_S = 60.0


class StepTimes:
    """Seconds of an epoch, and the part of them spent waiting for the next batch."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.waiting_s = 0.0
        self._mark_s = self._clock()

    def update_seconds(self) -> float:
        """Seconds of the epoch so far, including those before an interruption."""
        now_s = self._clock()
        self.seconds += now_s - self._mark_s
        self._mark_s = now_s
        return self.seconds

    def begin_epoch(self) -> None:
        self.update_seconds()
        self.seconds = self.waiting_s = 0.0

    def measure_wait(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same batches and add up the time that each one takes to arrive."""
        source = iter(batches)
        while True:
            begun_s = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.waiting_s += self._clock() - begun_s
            yield batch

    @property
    def data_wait_share(self) -> float:
        return self.waiting_s / max(1e-9, self.update_seconds())


class Progress:
    """Progress display of the first rank; disabled on the others."""

    def __init__(self, folder: Path, *, num_steps: int, first_step: int, times: StepTimes, enabled: bool) -> None:
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=None if enabled else True)
        self._times = times
        self._num_steps, self._first_step = num_steps, first_step
        # A log line a minute replaces the bar if stderr is not a terminal.
        self._logs = enabled and not sys.stderr.isatty()
        self._begun_s = self._logged_s = time.monotonic()
        self._writer = None
        if enabled:
            from tensorboardX import SummaryWriter

            # Drops what an interrupted run wrote about steps that are repeated.
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def on_step_end(self, step: int, *, loss: float | None, photos_per_s: float, learning_rate: float) -> None:
        self._bar.update()
        if self._logs and loss is not None and time.monotonic() - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = time.monotonic()
            left_s = (self._num_steps - step) * (self._logged_s - self._begun_s) / max(1, step - self._first_step)
            wait = self._times.data_wait_share
            _log.info(
                "step %d of %d: loss %.3f, %.0f photos/s, %.0f %% waiting for data, %.0f min left",
                *(step, self._num_steps, loss, photos_per_s, 100 * wait, left_s / 60),
            )
        if step % _LOG_EVERY_STEPS or loss is None:
            return
        wait = self._times.data_wait_share
        self._bar.set_postfix_str(f"loss {loss:.3f}, {photos_per_s:.0f} photos/s, {wait:.0%} waiting for data")
        if self._writer:
            self._writer.add_scalar("train/loss", loss, step)
            self._writer.add_scalar("train/learning_rate", learning_rate, step)
            self._writer.add_scalar("speed/photos_per_s", photos_per_s, step)
            self._writer.add_scalar("speed/data_wait_share", wait, step)

    def on_epoch_end(self, record: dict[str, float | None]) -> None:
        if self._writer:
            for name in ("loss", "val_leaf_top1", "val_brand_top1"):
                value = record.get(name)
                if value is not None:
                    self._writer.add_scalar(f"epoch/{name}", value, int(record["step"] or 0))
            self._writer.flush()
