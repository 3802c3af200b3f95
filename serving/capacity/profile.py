"""What one photo costs, measured on a machine or read from a file."""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision.bundle import Bundle
from vision.engine import OnnxEngine
from vision.errors import ListingVisionError
from vision.images import prepare_photo
from vision.runtime.cpus import count_usable_cores

__all__ = ["Profile", "measure_profile"]

MAX_PHOTOS_DECODED = 64
NUM_MODEL_CALLS = 20


@dataclass(frozen=True, kw_only=True)
class Profile:
    machine: str
    """The machine that was measured, for people."""
    decode_ms: float
    """Time of one core to decode one photo."""
    model_ms: Mapping[int, float]
    """Time of one instance (a GPU, or a core) by the number of photos in a batch."""
    gateway_ms: float
    """Time of one core for one photo beside decoding: messages, decision."""
    photo: str = ""
    """The photos that were decoded, for people."""

    def __post_init__(self) -> None:
        costs = {"decode_ms": self.decode_ms, "gateway_ms": self.gateway_ms}
        costs |= {f"model_ms[{size}]": ms for size, ms in self.model_ms.items()}
        for name, value in costs.items():
            if not 0 <= value < 1e6:
                raise ListingVisionError(f"profile: {name} = {value!r}: give milliseconds, 0 or more")
        if not self.model_ms or min(self.model_ms) < 1:
            raise ListingVisionError(
                "profile: model_ms is empty or has batches below 1; give at least that of one photo"
            )

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a profile. Raises ListingVisionError: the file cannot be read, or is no profile."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**raw, "model_ms": {int(size): float(ms) for size, ms in raw["model_ms"].items()}})
        except OSError as error:
            raise ListingVisionError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ListingVisionError(
                f"{path} is no profile ({error!r}); `listing-vision plan measure` writes one"
            ) from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def batch_ms(self, num_photos: int) -> float:
        """Return the time of a batch: linear between measured sizes, and in proportion beyond the largest."""
        sizes = sorted(self.model_ms)
        if num_photos > sizes[-1]:
            return self.model_ms[sizes[-1]] * num_photos / sizes[-1]
        return float(np.interp(num_photos, sizes, [self.model_ms[size] for size in sizes]))

    def compute_max_photos_per_s(self, num_cores: int, *, model_on_cores: bool) -> float:
        """Return what so many cores can do at most; gateway processes and decode workers keep them all busy."""
        cost_ms = self.decode_ms + self.gateway_ms + (self.batch_ms(1) if model_on_cores else 0.0)
        return math.inf if cost_ms == 0 else 1000 * num_cores / cost_ms


def measure_profile(bundle: Bundle, photos: Path, *, gateway_ms: float) -> Profile:
    """Measure what decoding and the model cost on one core of this machine.

    Args:
        photos: folder of photos like those to expect.

    Raises:
        ListingVisionError: the folder holds no photos.
    """
    files = sorted(path for path in photos.iterdir() if path.is_file())[:MAX_PHOTOS_DECODED]
    if not files:
        raise ListingVisionError(f"{photos} holds no photos; give a folder of some dozens")
    contents = [path.read_bytes() for path in files]
    engine = OnnxEngine(bundle, num_threads=1)
    golden = bundle.golden.photos_nhwc[:1]
    engine.infer(golden)
    decode_ms = _measure_mean_ms(lambda content: prepare_photo(content, bundle.info.preprocessing), contents)
    model_ms = _measure_mean_ms(engine.infer, [golden] * NUM_MODEL_CALLS)
    return Profile(
        machine=f"{platform.node()}, {platform.machine()}, {count_usable_cores()} cores",
        decode_ms=round(decode_ms, 3),
        model_ms={1: round(model_ms, 3)},
        gateway_ms=gateway_ms,
        photo=f"{len(contents)} of {photos.name}, {sum(map(len, contents)) // len(contents)} bytes on average",
    )


def _measure_mean_ms(work: Callable[[Any], object], inputs: Sequence[Any]) -> float:
    began_s = time.perf_counter()
    for each in inputs:
        work(each)
    return 1000 * (time.perf_counter() - began_s) / len(inputs)
