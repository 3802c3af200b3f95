"""BentoML with one worker per core, each with one thread, as its documentation says for a CPU; no access log.

PEER_BUNDLE=BUNDLE bentoml serve benchmarks.peers.bentoml_server:ListingVision --port PORT
"""

import os
from pathlib import Path

import bentoml

from benchmarks.peers.classifier import Classifier


@bentoml.service(workers=len(os.sched_getaffinity(0)), threads=1, logging={"access": {"enabled": False}})
class ListingVision:
    def __init__(self) -> None:
        self._classifier = Classifier(Path(os.environ["PEER_BUNDLE"]))

    # A lone positional argument is the body itself, undecoded.
    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML is not installed where types are checked
    def classify(self, request: bytes, /) -> bytes:
        return self._classifier(request)
