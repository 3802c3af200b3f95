"""Progress of a run: a progress bar or log lines, figures for the trackers, and the time spent waiting for data."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from training.recipe import Recipe, Stage
from training.trackers import Trackers
from vision.runtime.progress import Progress

__all__ = ["RunProgress", "StepTimes", "TimeLeft", "compute_work"]

T = TypeVar("T")

_EVERY_STEPS = 10
_PASSES = {"all": 3.0, "heads": 1.0, "heads_on_features": 0.01}
"""Work of a step in forward passes: a backward pass costs two."""


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

    def skip(self) -> None:
        """Leave out the time since the last call."""
        self._mark_s = self._clock()

    def rewind(self, seconds: float) -> None:
        """Leave out the time since the epoch had taken so long."""
        self.seconds = seconds
        self.skip()

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

    def describe_epoch(self, num_photos: float) -> dict[str, float]:
        """`photos_per_s` and `data_wait_share` of an epoch with so many photos so far."""
        return {"photos_per_s": num_photos / self.update_seconds(), "data_wait_share": self.data_wait_share}


class TimeLeft:
    """Seconds that a run still takes. Stages that have not begun are estimated by their work, which grows with the
    area of a photo; the others by their own steps so far."""

    def __init__(self, recipe: Recipe, *, steps_per_epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._recipe, self._steps_per_epoch, self._clock = recipe, steps_per_epoch, clock
        self.num_steps = steps_per_epoch * recipe.num_epochs
        self._seconds: dict[Stage, float] = defaultdict(float)
        self._num_steps: dict[Stage, int] = defaultdict(int)
        self._val_s: float | None = None
        self._mark_s = clock()

    def end_step(self, step: int) -> None:
        """Count the time since the last call for this step, counted from 0."""
        stage = self._recipe.stage_of_epoch(step // self._steps_per_epoch)
        now_s = self._clock()
        self._seconds[stage] += now_s - self._mark_s
        self._num_steps[stage] += 1
        self._mark_s = now_s

    def end_epoch(self) -> None:
        """Count the time since the last step for val."""
        now_s = self._clock()
        self._val_s, self._mark_s = now_s - self._mark_s, now_s

    def estimate(self, num_done: int) -> float:
        """Seconds left after so many steps of the run, at least one of them of this process."""
        work = sum(compute_work(stage) * count for stage, count in self._num_steps.items())
        per_work = sum(self._seconds.values()) / work
        left_s, end = 0.0, 0
        for stage in self._recipe.stages:
            begin, end = end, end + stage.epochs * self._steps_per_epoch
            num_left = max(0, end - max(begin, num_done))
            measured = self._num_steps[stage]
            left_s += num_left * (self._seconds[stage] / measured if measured else per_work * compute_work(stage))
        num_epochs_left = self._recipe.num_epochs - num_done // self._steps_per_epoch
        return left_s + (self._val_s or 0.0) * num_epochs_left


def compute_work(stage: Stage) -> float:
    """Work of a photo in a stage, relative to that in another one."""
    return _PASSES[stage.trains] * stage.photo_px**2


class RunProgress:
    """Progress display of the first rank; disabled on the others."""

    def __init__(self, trackers: Trackers, left: TimeLeft, *, first_step: int, enabled: bool) -> None:
        self._shown = Progress("training", left.num_steps, unit="step", done=first_step, enabled=enabled)
        self._left, self._trackers = left, trackers

    def __enter__(self) -> "RunProgress":
        self._shown.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.__exit__()

    def on_step_end(
        self, step: int, *, loss: float | None, photos_per_s: float, data_wait_share: float, learning_rate: float
    ) -> None:
        """Args:
        step: steps done.
        loss: of the newest step that is known.
        photos_per_s: of the epoch so far.
        data_wait_share: of the epoch so far.
        learning_rate: the highest one.
        """
        self._left.end_step(step - 1)
        self._shown.advance(
            details=f"loss {'?' if loss is None else f'{loss:.3f}'}, {photos_per_s:.0f} photos/s, "
            f"{data_wait_share:.0%} waiting for data",
            seconds_left=self._left.estimate(step),
        )
        if step % _EVERY_STEPS == 0 and loss is not None:
            figures = {
                "train/loss": loss,
                "train/learning_rate": learning_rate,
                "speed/photos_per_s": photos_per_s,
                "speed/data_wait_share": data_wait_share,
            }
            self._trackers.log(figures, step)

    def on_epoch_end(self, record: dict[str, float | None]) -> None:
        self._left.end_epoch()
        names = ("loss", "val_leaf_top1", "val_brand_top1")
        figures = {f"epoch/{name}": value for name in names if (value := record.get(name)) is not None}
        self._trackers.log(figures, int(record["step"] or 0))
