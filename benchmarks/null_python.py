"""Runs a module of this project as `python -m` does, with a decoder that does nothing.

    python benchmarks/null_python.py -m MODULE [ARGUMENT…]

Decode workers respond at once with the pixels that their memory has, so that what is left is the hand-over of photos.
"""

import importlib
import sys

import numpy as np

from vision.decoding import fork_server

if __name__ == "__main__":
    at = sys.argv.index("-m")
    module, sys.argv = importlib.import_module(sys.argv[at + 1]), sys.argv[at + 1 :]
    vars(fork_server)["prepare_photo"] = lambda data, preprocessing, limits: np.empty(0, np.uint8)
    # Before `-m vision.decoding.fork_server` it would be another module.
    (fork_server if module.__name__ == fork_server.__name__ else module).main()
