"""What a feeder and the process with the model say to each other: settings, tasks and filled slabs.

Messages are JSON over a Unix socket. Pixels are not sent: they lie in slabs of memory that both have mapped.
"""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits
from vision.feeders.photo_reader import PhotoFailure

__all__ = ["READ_AHEAD", "FeedResult", "FeedTask", "FeederSettings"]

READ_AHEAD = 8
"""Photos per decoder that are read at once, or read and not decoded: a core decodes a hundred per second, and object
storage takes 0.1 s for each. Bounds memory: encoded photos are large."""


@dataclass(frozen=True, kw_only=True)
class FeederSettings:
    """What a feeder reads, how it decodes, and how much of it at once."""

    decoding: DecodeSettings
    time_limits: TimeLimits
    isolate: bool
    """Whether photos are decoded in decode workers; otherwise in the feeder, which a photo may then crash."""
    num_decoders: int
    """Decode workers; 1 unless isolated."""
    slab_photos: int
    """Most photos of a task."""
    num_slabs: int
    """Tasks that are filled, or filled and not released."""
    photo_timeout_s: float
    """How long a server may take for a photo, all attempts together."""
    python: tuple[str, ...]
    """Command that runs Python, for feeders and fork servers."""

    def to_json(self) -> bytes:
        return json.dumps({**asdict(self), "decoding": self.decoding.to_json()}).encode()

    @classmethod
    def from_json(cls, message: bytes) -> "FeederSettings":
        raw = json.loads(message)
        return cls(
            **{
                **raw,
                "decoding": DecodeSettings.from_json(raw["decoding"]),
                "time_limits": TimeLimits(**raw["time_limits"]),
                "python": tuple(raw["python"]),
            }
        )

    @property
    def slabs_shape(self) -> tuple[int, int, int, int, int]:
        """(slabs, photos, S, S, 3) of the uint8 memory that feeder and model share."""
        side_px = self.decoding.preprocessing.input_px
        return self.num_slabs, self.slab_photos, side_px, side_px, 3

    def view_slabs(self, memory: "memoryview | bytearray") -> npt.NDArray[np.uint8]:
        return np.frombuffer(memory, np.uint8).reshape(self.slabs_shape)


@dataclass(frozen=True, kw_only=True)
class FeedTask:
    """Photos to fill a slab with, each in its place."""

    slab: int
    urls: tuple[str, ...]

    def to_json(self) -> bytes:
        return json.dumps({"slab": self.slab, "urls": self.urls}).encode()

    @classmethod
    def from_json(cls, message: bytes) -> "FeedTask":
        raw = json.loads(message)
        return cls(slab=raw["slab"], urls=tuple(raw["urls"]))


@dataclass(frozen=True, kw_only=True)
class FeedResult:
    """A slab whose photos are all decoded or failed."""

    slab: int
    failures: dict[int, PhotoFailure] = field(default_factory=dict)
    """Failures by place; the slab has no photo there."""
    wait_times_s: dict[str, float] = field(default_factory=dict)
    """Seconds that decoders waited since the last result: `read` for bytes, `model` for a slab to fill."""
    error: str = ""
    """Why the feeder cannot go on; then the slab is not filled."""

    def to_json(self) -> bytes:
        failures = [[place, one.reason, one.message] for place, one in self.failures.items()]
        fields = {"slab": self.slab, "wait_times_s": self.wait_times_s, "error": self.error}
        return json.dumps({**fields, "failures": failures}).encode()

    @classmethod
    def from_json(cls, message: bytes) -> "FeedResult":
        raw = json.loads(message)
        failures = {place: PhotoFailure(reason=reason, message=text) for place, reason, text in raw["failures"]}
        return cls(**{**raw, "failures": failures})
