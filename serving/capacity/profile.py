"""What one photo costs, as it was measured on some machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vision.errors import ListingVisionError

__all__ = ["Profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    machine: str
    """Where it was measured, for people."""
    decode_ms: float
    """Of one core, for one photo."""
    model_ms: Mapping[int, float]
    """Of one instance (a GPU, or a core), for a batch of so many photos."""
    gateway_ms: float
    """Of one core, for one photo, beside decoding: messages, decision."""
    photo: str = ""
    """What kind was decoded, for people."""

    def __post_init__(self) -> None:
        costs = {"decode_ms": self.decode_ms, "gateway_ms": self.gateway_ms}
        costs |= {f"model_ms[{size}]": ms for size, ms in self.model_ms.items()}
        for name, value in costs.items():
            if not 0 <= value < 1e6:
                raise ListingVisionError(f"profile: {name} = {value!r}: give milliseconds, 0 or more")
        if not self.model_ms or min(self.model_ms) < 1:
            raise ListingVisionError(
                "profile: model_ms is empty or of batches below 1; give that of one photo at least"
            )

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Raises ListingVisionError: it cannot be read, or is none."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**raw, "model_ms": {int(size): float(ms) for size, ms in raw["model_ms"].items()}})
        except OSError as error:
            raise ListingVisionError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ListingVisionError(
                f"{path} is no profile ({error!r}); `listing-vision plan measure` makes one"
            ) from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def batch_ms(self, num_photos: int) -> float:
        """Between measured sizes on a line; beyond the largest by its own cost a photo."""
        sizes = sorted(self.model_ms)
        if num_photos > sizes[-1]:
            return self.model_ms[sizes[-1]] * num_photos / sizes[-1]
        return float(np.interp(num_photos, sizes, [self.model_ms[size] for size in sizes]))
