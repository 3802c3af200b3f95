"""Previews of photos that a browser cannot show, such as HEIC; a worker decodes them, which a photo may crash."""

import asyncio
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from listing_vision_client.errors import FieldViolation
from serving.decoding.pool import DecoderPool
from serving.http_api.errors import HttpRefusal
from vision.images import Preprocessing
from vision.images.heif import read_heif_aspect

__all__ = ["PREVIEW_PX", "PreviewMaker"]

PREVIEW_PX = 640
"""Length of the longer side."""
_MAX_WAITING = 20
"""Photos of one listing."""


class PreviewMaker:
    """Creates one preview at a time; use it in one running loop, and close it. The first photo starts the worker."""

    def __init__(self) -> None:
        self._decoders = DecoderPool(Preprocessing(input_px=PREVIEW_PX), num_workers=1)

    async def create(self, photo: bytes) -> bytes:
        """Return a JPEG, upright and in sRGB.

        Raises:
            HttpRefusal: the photo is unusable, or many others wait.
        """
        if self._decoders.num_waiting >= _MAX_WAITING:
            raise HttpRefusal(reason="TOO_BUSY", message="too many previews at once; try again", retry_delay_s=1)
        prepared = await self._decoders.prepare(photo)
        if prepared.error:
            reason, description = prepared.error.reason, str(prepared.error)
            violation = FieldViolation(field="photo", reason=reason, description=description)
            raise HttpRefusal(reason="NO_USABLE_PHOTO", message=f"no preview: {description}", violations=[violation])
        assert prepared.pixels is not None
        return await asyncio.to_thread(_encode, prepared.pixels, read_heif_aspect(photo))

    async def close(self) -> None:
        await self._decoders.close()


def _encode(pixels: npt.NDArray[np.uint8], aspect: float) -> bytes:
    """Return the JPEG of a photo that was squashed to a square."""
    size = [max(1, round(PREVIEW_PX * min(1, side))) for side in (aspect, 1 / aspect)]
    out = io.BytesIO()
    Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()
