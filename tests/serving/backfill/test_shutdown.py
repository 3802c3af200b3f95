"""The three steps of a shutdown: no new shards, open ones abandoned, exit."""

import os
import queue
import signal

import pytest

from serving.backfill.shutdown import GracefulShutdown, Interrupted
from serving.errors import BackfillError


def create_shutdown(**options):
    exits = queue.Queue()
    return GracefulShutdown(exit_process=exits.put, **options), exits


def test_a_signal_stops_new_shards_then_open_ones_then_the_process():
    shutdown, exits = create_shutdown(grace_period_s=0.05, exit_deadline_s=0.1)
    before = signal.getsignal(signal.SIGTERM)
    with shutdown.handle_signals():
        taken = shutdown.take_until_stopped(range(10))
        assert next(taken) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.stop_requested.wait(5)
        assert list(taken) == []
        assert shutdown.abort.wait(5)
        assert exits.get(timeout=5) == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_a_failure_after_the_abort_is_an_interruption():
    shutdown, _ = create_shutdown()

    def results():
        yield 1
        raise BackfillError("the model is gone")

    with pytest.raises(BackfillError, match="the model is gone"):
        list(shutdown.raise_interrupted(results()))
    shutdown.abort.set()
    with pytest.raises(Interrupted, match="rerun the same command"):
        list(shutdown.raise_interrupted(results()))
