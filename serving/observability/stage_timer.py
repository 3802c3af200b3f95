"""The stages of a call, each measured once: for the metric, for the answer and for the trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serving.observability import tracing
from serving.observability.metrics import STAGE_SECONDS

__all__ = ["collect_stage_timings", "measure_stage", "suppress_metrics"]

_COLLECTED: ContextVar[dict[str, float] | None] = ContextVar("noted stages", default=None)
_METRICS_ENABLED: ContextVar[bool] = ContextVar("observed stages", default=True)


@contextmanager
def measure_stage(name: str) -> Iterator[None]:
    """Args: name: a value of the label `stage` of `STAGE_SECONDS`, and the name of its span."""
    began_s = time.perf_counter()
    timings = _COLLECTED.get()
    if timings is not None:
        # In the order of their beginnings; what never ends took no time that anyone can tell.
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
    """Seconds by stage, in the order in which they were begun, of what this task does within."""
    timings: dict[str, float] = {}
    token = _COLLECTED.set(timings)
    try:
        yield timings
    finally:
        _COLLECTED.reset(token)


@contextmanager
def suppress_metrics() -> Iterator[None]:
    """What this task does within is in no metric of stages: no caller waits for it."""
    token = _METRICS_ENABLED.set(False)
    try:
        yield
    finally:
        _METRICS_ENABLED.reset(token)
