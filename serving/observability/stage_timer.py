"""Times of the stages of a call, measured once for the metric, the response and the trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serving.observability import tracing
from serving.observability.metrics import STAGE_SECONDS

__all__ = ["collect_stage_timings", "measure_stage", "suppress_metrics"]

_COLLECTED: ContextVar[dict[str, float] | None] = ContextVar("collected stage timings", default=None)
_METRICS_ENABLED: ContextVar[bool] = ContextVar("stage metrics enabled", default=True)


@contextmanager
def measure_stage(name: str) -> Iterator[None]:
    """Measure a stage.

    Args: name: value of the label `stage` of `STAGE_SECONDS`, and name of the span.
    """
    began_s = time.perf_counter()
    timings = _COLLECTED.get()
    if timings is not None:
        # Keeps the stages in the order in which they start; one that does not finish counts as 0 s.
        timings.setdefault(name, 0.0)
    try:
        with tracing.span(name):
            yield
    finally:
        seconds = time.perf_counter() - began_s
        if _METRICS_ENABLED.get():
            STAGE_SECONDS.labels(name).observe(seconds)
        if timings is not None:
            timings[name] += seconds


@contextmanager
def collect_stage_timings() -> Iterator[dict[str, float]]:
    """Collect the seconds of each stage that this task runs within, in the order in which they start."""
    timings: dict[str, float] = {}
    token = _COLLECTED.set(timings)
    try:
        yield timings
    finally:
        _COLLECTED.reset(token)


@contextmanager
def suppress_metrics() -> Iterator[None]:
    """Keep the stages that this task runs within out of the metrics, because no caller waits for them."""
    token = _METRICS_ENABLED.set(False)
    try:
        yield
    finally:
        _METRICS_ENABLED.reset(token)
