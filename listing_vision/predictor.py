"""Suggestions in this process: decoder, model and decision rule of the gateway."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vision.bundle import Bundle, load_bundle
from vision.engine import OnnxEngine
from vision.errors import ListingVisionError, PhotoError

if TYPE_CHECKING:  # gRPC is not installed where models are only trained
    from listing_vision_client.results import ListingSuggestion

__all__ = ["Predictor"]

PhotoSource = str | Path | bytes | npt.NDArray[np.uint8]
"""A path, an encoded photo, or the pixels (H, W, 3) in sRGB."""


class Predictor:
    """A bundle, loaded once for any number of listings.

    Example:
        Predictor("bundles/first").predict(["front.jpg", "label.jpg"])
    """

    def __init__(self, bundle: Bundle | str | Path) -> None:
        """Raises:
        BundleError: the bundle is incomplete or altered.
        """
        loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self._engine = OnnxEngine(loaded)
        self._bundle = loaded.for_backend(self._engine.backend)

    def predict(self, photos: Sequence[PhotoSource]) -> "ListingSuggestion":
        """Category and brand of one listing from its photos; one that cannot be used is reported in the suggestion.

        Raises:
            PhotoError: no photo can be used.
            ListingVisionError: a file cannot be read, or an array is no photo.
        """
        from listing_vision_client.convert import from_message
        from listing_vision_client.results import ListingSuggestion
        from serving.api import responses
        from serving.decoding.prepared import prepare

        prepared = [prepare(_read(photo), self._bundle.info.preprocessing) for photo in photos]
        usable = [photo.pixels for photo in prepared if photo.pixels is not None]
        if not usable:
            raise PhotoError(
                "no photo can be used:\n" + "\n".join(f"  photo {i}: {p.error}" for i, p in enumerate(prepared))
            )
        errors = [photo.error for photo in prepared]
        response = responses.build_response(self._bundle, errors, self._engine.infer(np.stack(usable)))
        return from_message(ListingSuggestion, response)


def _read(photo: PhotoSource) -> bytes:
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise ListingVisionError(f"an array of shape {photo.shape} {photo.dtype} is no photo: give (H, W, 3) uint8")
        from PIL import Image

        # Through the same door as every file, without loss.
        encoded = io.BytesIO()
        Image.fromarray(photo).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()
    try:
        return Path(photo).read_bytes()
    except OSError as error:
        raise ListingVisionError(f"photo {error.filename} cannot be read: {error.strerror}") from error
