"""LitServe with one worker per core and an HTTP server for each worker, as its documentation says for a CPU.

    python -m benchmarks.peers.litserve_server BUNDLE PORT

No batches: of up to four they cost the same processor time a photo, 12.9 ms against 13.1 on two cores of an AMD EPYC.
`fast_queue` is for hundreds of calls a second, by the same documentation.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import litserve
from fastapi import Body, Response

from benchmarks.peers.classifier import Classifier

Request = Annotated[bytes, Body(media_type="application/octet-stream")]


class _Api(litserve.LitAPI):  # type: ignore[misc]  # LitServe is not installed where types are checked
    def __init__(self, bundle: Path) -> None:
        super().__init__()
        self._folder = bundle

    def setup(self, device: str) -> None:
        self._classifier = Classifier(self._folder)

    def decode_request(self, request: Request) -> bytes:
        return request

    def predict(self, request: bytes) -> bytes:
        return self._classifier(request)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


# A guard as for any program whose workers are spawned: they import this file.
if __name__ == "__main__":
    litserve.LitServer(_Api(Path(sys.argv[1])), accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0))).run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False
    )
