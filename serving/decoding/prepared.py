"""A photo prepared for the model, or the reason why it is unusable."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vision.errors import PhotoError
from vision.images import EncodedPhoto, PhotoLimits, Preprocessing, check_bytes, prepare_photo

__all__ = ["PHOTO_LIMITS", "PreparedPhoto", "find_size_error", "prepare"]

PHOTO_LIMITS = PhotoLimits()


@dataclass(frozen=True)
class PreparedPhoto:
    """Either pixels or an error."""

    pixels: npt.NDArray[np.uint8] | None
    """(S, S, 3) uint8, S being the bundle's input_px."""
    error: PhotoError | None


def prepare(data: EncodedPhoto, preprocessing: Preprocessing) -> PreparedPhoto:
    """Decode and resize one encoded photo in this thread."""
    try:
        return PreparedPhoto(prepare_photo(bytes(data), preprocessing, PHOTO_LIMITS), None)
    except PhotoError as error:
        return PreparedPhoto(None, error)


def find_size_error(data: EncodedPhoto) -> PhotoError | None:
    """Return what is wrong with the number of bytes: none, or too many."""
    try:
        check_bytes(data, PHOTO_LIMITS)
    except PhotoError as error:
        return error
    return None
