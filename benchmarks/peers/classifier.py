"""What every peer does with a call: decoder, model and response of the gateway, in one thread.

With PEER_ISOLATE=1 photos are decoded in decode workers, one a thread, which a photo may crash.
"""

import os
import sys
import threading
from pathlib import Path

import numpy as np

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api import responses
from serving.decoding.prepared import PHOTO_LIMITS
from vision.bundle import load_bundle
from vision.decoding.fork_client import MAX_MEMORY_BYTES, Decoder, ForkServer, InlineDecoder
from vision.decoding.fork_server import DecodeSettings
from vision.engine import OnnxEngine
from vision.errors import PhotoError

__all__ = ["Classifier"]

ROOT = Path(__file__).resolve().parents[2]


class Classifier:
    """Classifies serialised requests; safe to use from many threads."""

    def __init__(self, bundle: Path) -> None:
        loaded = load_bundle(bundle)
        self._engine = OnnxEngine(loaded, num_threads=1)
        self._bundle = loaded.for_backend(self._engine.backend)
        self._engine.infer(loaded.golden.photos_nhwc[:1])
        self._settings = DecodeSettings(
            preprocessing=loaded.info.preprocessing, limits=PHOTO_LIMITS, max_memory_bytes=MAX_MEMORY_BYTES
        )
        self._is_isolated = os.environ.get("PEER_ISOLATE") == "1"
        self._of_thread = threading.local()

    def __call__(self, request: bytes) -> bytes:
        """Return the serialised response to a serialised request of usable photos."""
        asked = pb.ClassifyListingRequest.FromString(request)
        decoder = self._get_decoder()
        decoded = []
        for photo in asked.photos:
            decoder.begin(photo.content)
            decoded.append(decoder.end())
        logits = self._engine.infer(np.stack([photo for photo in decoded if not isinstance(photo, PhotoError)]))
        errors = [photo if isinstance(photo, PhotoError) else None for photo in decoded]
        options = responses.ResponseOptions(listing_id=asked.listing_id)
        return responses.build_response(self._bundle, errors, logits, options).SerializeToString()

    def _get_decoder(self) -> Decoder | InlineDecoder:
        if not hasattr(self._of_thread, "decoder"):
            self._of_thread.decoder = (
                Decoder(ForkServer(self._settings, [sys.executable], path=ROOT), self._settings)
                if self._is_isolated
                else InlineDecoder(self._settings)
            )
        decoder: Decoder | InlineDecoder = self._of_thread.decoder
        return decoder
