"""The stages of a call, each measured once: for the metric, for the answer and for the trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serving.observability import tracing
from serving.observability.metrics import STAGE_SECONDS

__all__ = ["stage", "stages_noted", "unobserved"]

_NOTED: ContextVar[dict[str, float] | None] = ContextVar("noted stages", default=None)
_OBSERVED: ContextVar[bool] = ContextVar("observed stages", default=True)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Args: name: a value of the label `stage` of `STAGE_SECONDS`, and the name of its span."""
    began_s = time.perf_counter()
    noted = _NOTED.get()
    if noted is not None:
        # In the order of their beginnings; what never ends took no time that anyone can tell.
        noted.setdefault(name, 0.0)
    try:
        with tracing.span(name):
            yield
    finally:
        seconds = time.perf_counter() - began_s
        if _OBSERVED.get():
            STAGE_SECONDS.labels(name).observe(seconds)
        if noted is not None:
            noted[name] += seconds


@contextmanager
def stages_noted() -> Iterator[dict[str, float]]:
    """Seconds by stage, in the order in which they were begun, of what this task does within."""
    noted: dict[str, float] = {}
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


@contextmanager
def unobserved() -> Iterator[None]:
    """What this task does within is in no metric of stages: no caller waits for it."""
    token = _OBSERVED.set(False)
    try:
        yield
    finally:
        _OBSERVED.reset(token)
