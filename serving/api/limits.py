"""Limits of requests, which the gateway enforces and its callers respect."""

from vision.images import PhotoLimits

__all__ = ["MAX_ALTERNATIVES", "MAX_LISTING_ID_CHARS", "MAX_PHOTOS", "MESSAGE_LIMIT_BYTES", "PHOTO_LIMITS"]

MAX_PHOTOS = 20
MAX_ALTERNATIVES = 20
MAX_LISTING_ID_CHARS = 200
MESSAGE_LIMIT_BYTES = 64 << 20
"""Limit of a request at both ends; photos as phones make them are 2 to 5 MB each."""
PHOTO_LIMITS = PhotoLimits()
