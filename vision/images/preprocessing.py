"""Preprocessing from an upright photo to the model's input."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Preprocessing"]

_DECODER_REVISION = 3
"""Raise it whenever the same bytes decode to other pixels; part of the fingerprint.

2: orientation read although the rest of the EXIF block is malformed; transparency and profile of 16-bit greys; the grey
profile of greys with alpha; white around a GIF frame that is smaller than its screen.
3: JPEGs without an end marker are decoded, damaged ones are refused; profiles are sRGB by their curves, not by their
names; gamma, chromaticities and code points are heeded; damage in what no pixel of a PNG needs does not matter; the
clear colour of greys of 2 and 4 bits and of 16-bit colours; an orientation in XMP or in a PNG's text is ignored.
"""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an upright photo becomes the model's input; stored in the bundle, hashed in certificates."""

    input_px: int
    """Side of the square uint8 input."""
    fit: Literal["squash"] = "squash"
    """The whole photo is kept and its aspect is not: a seller's product often touches the edge."""
    interpolation: Literal["bicubic"] = "bicubic"
    decoder_revision: int = _DECODER_REVISION

    def __post_init__(self) -> None:
        if not 32 <= self.input_px <= 1024:
            raise ValueError(f"input_px {self.input_px} is outside 32..1024")
        if self.decoder_revision != _DECODER_REVISION:
            raise ValueError(
                f"decoder_revision {self.decoder_revision} is not {_DECODER_REVISION}, the one this version "
                "decodes with; export the model again with this version"
            )

    def fingerprint(self) -> str:
        """Return sixteen hex digits that change whenever the model's input pixels would change."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
