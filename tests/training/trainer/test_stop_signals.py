import os
import signal
import threading

import pytest

from training.trainer.stop_signals import call_on_stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_calls_and_the_handler_from_before_comes_back(number):
    before = signal.getsignal(number)
    asked = threading.Event()
    with call_on_stop_signals(asked.set):
        os.kill(os.getpid(), number)
        assert asked.wait(10)
    assert signal.getsignal(number) == before


def test_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def look():
        with call_on_stop_signals(lambda: None):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
