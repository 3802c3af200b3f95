"""The first seconds of a verb that computes: data loader server, PyTorch, signals."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vision.runtime.progress import Progress

__all__ = ["load_torch", "request_stop_on_signals"]


def load_torch(*, workers: int | None = 0) -> None:
    """Import PyTorch, which takes from seconds to a minute, while the data loader's server does the same.

    Args:
        workers: data loader processes that will be asked for; None if not known yet.
    """
    if workers != 0:
        from training.trainer.loading.processes import start_loader_server

        start_loader_server()
    with Progress("loading PyTorch"):
        import timm  # noqa: F401
        import torch  # noqa: F401


@contextmanager
def request_stop_on_signals() -> Iterator[threading.Event]:
    """Yield what SIGTERM, SIGINT and SIGUSR1 set from now on."""
    from training.trainer.stop_signals import call_on_stop_signals

    stop_requested = threading.Event()
    with call_on_stop_signals(stop_requested.set):
        yield stop_requested
