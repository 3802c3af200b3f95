"""torchrun with an exit status for job queues: 75 if repeating the same command resumes the training.

    python -m training.launch TORCHRUN-OPTIONS -m training MANIFEST --run-folder FOLDER

torchrun itself exits 1 however its ranks ended.
"""

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main as torchrun

from vision.runtime.cli import EXIT_INTERRUPTED

__all__ = ["launch"]

_log = logging.getLogger(__name__)


def launch(arguments: Sequence[str]) -> int:
    """Return the exit status: 0, 75 or 1.

    75 where the rank that ended first was interrupted, where the launcher itself was told to stop (its ranks have then
    saved or been killed), and where the machine that the others meet at is not there, yet or any more.
    """
    # A machine that comes back would wait for ever: the first rank shares its store from the first round on, and does
    # not publish its address again (seen with torch 2.14).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
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


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise SystemExit(launch(sys.argv[1:]))
