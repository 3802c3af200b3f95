"""torchrun with an exit status for job queues: 75 if repeating the same command resumes the training.

    python -m training.launch TORCHRUN-OPTIONS -m training MANIFEST --run-folder FOLDER

torchrun itself exits 1 however its ranks ended, and by the signal if one comes before its ranks have started.
"""

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from vision.runtime.cli import EXIT_INTERRUPTED
from vision.runtime.progress import Heartbeat

__all__ = ["launch"]

_log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Those on which ranks save and end."""
POLL_INTERVAL_S = 0.5
"""Interval at which to look whether ranks have started."""


def launch(arguments: Sequence[str]) -> int:
    """Return the exit status: 0, 75 or 1.

    75 where the rank that ended first was interrupted, where the launcher itself was told to stop (its ranks have then
    saved or been killed), and where the machine that the others meet at is not there, yet or any more.

    Until its ranks start, the launcher logs how long it has waited, and a signal ends this process at once.
    """
    # A machine that comes back would wait for ever: the first rank shares its store from the first round on, and does
    # not publish its address again (seen with torch 2.14).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with Heartbeat("starting ranks") as heartbeat:
        _handle_signals_until_ranks_start(heartbeat)
        return _run_torchrun(arguments)


def _run_torchrun(arguments: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        _log.error("%s", error)
        return EXIT_INTERRUPTED if first.exitcode == EXIT_INTERRUPTED else 1
    except SignalException as error:
        _log.warning("stopped by %s", error.sigval.name)
        return EXIT_INTERRUPTED
    except RendezvousError as error:
        _log.warning("the other machines are not there: %s", error)
        return EXIT_INTERRUPTED
    return 0


def _handle_signals_until_ranks_start(heartbeat: Heartbeat) -> None:
    """Exit 75 on a stop signal, and end the heartbeat when torchrun replaces these handlers, as it starts its ranks."""
    # A handler waits for the main thread, which may be connecting to another machine for a minute; the pipe does not.
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, _exit_interrupted)

    def watch() -> None:
        while signal.getsignal(signal.SIGTERM) is _exit_interrupted:
            has_signal, _, _ = select.select([read_fd], [], [], POLL_INTERVAL_S)
            if not has_signal or (number := os.read(read_fd, 1)[0]) not in STOP_SIGNALS:
                continue
            if signal.getsignal(number) is _exit_interrupted:  # torchrun, which may handle it by now, stops its ranks
                _exit_interrupted(number, None)
        heartbeat.stop()

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _exit_interrupted(number: int, _: FrameType | None) -> None:
    _log.warning("stopped by %s", signal.Signals(number).name)
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise SystemExit(launch(sys.argv[1:]))
