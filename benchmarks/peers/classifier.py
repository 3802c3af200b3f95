"""What every peer does with a call: decoder, model and response of the gateway, in one thread."""

from pathlib import Path

import numpy as np

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api import responses
from serving.decoding.prepared import prepare
from vision.bundle import load_bundle
from vision.engine import OnnxEngine

__all__ = ["Classifier"]


class Classifier:
    """Classifies serialised requests; safe to use from many threads."""

    def __init__(self, bundle: Path) -> None:
        loaded = load_bundle(bundle)
        self._engine = OnnxEngine(loaded, num_threads=1)
        self._bundle = loaded.for_backend(self._engine.backend)
        self._engine.infer(loaded.golden.photos_nhwc[:1])

    def __call__(self, request: bytes) -> bytes:
        """Return the serialised response to a serialised request of usable photos."""
        asked = pb.ClassifyListingRequest.FromString(request)
        prepared = [prepare(photo.content, self._bundle.info.preprocessing) for photo in asked.photos]
        logits = self._engine.infer(np.stack([photo.pixels for photo in prepared if photo.pixels is not None]))
        errors = [photo.error for photo in prepared]
        options = responses.ResponseOptions(listing_id=asked.listing_id)
        return responses.build_response(self._bundle, errors, logits, options).SerializeToString()
