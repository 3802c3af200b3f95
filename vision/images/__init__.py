"""Photos: from bytes to the model's input, by the one decoder that training and serving share."""

from vision.images.decoding import Photo, decode_photo, prepare_photo, read_size_px
from vision.images.formats import ALLOWED_FORMATS, detect_format
from vision.images.limits import EncodedPhoto, PhotoLimits, check_bytes
from vision.images.preprocessing import Preprocessing

__all__ = [
    "ALLOWED_FORMATS",
    "EncodedPhoto",
    "Photo",
    "PhotoLimits",
    "Preprocessing",
    "check_bytes",
    "decode_photo",
    "detect_format",
    "prepare_photo",
    "read_size_px",
]
