"""What the gateway needs of an engine, whether it is a Triton server or ONNX Runtime in this process."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vision.engine import Logits
from vision.errors import PhotoError
from vision.images import EncodedPhoto

__all__ = ["AsyncEngine", "EncodedInferenceResult", "InferEncoded"]


class EncodedInferenceResult(NamedTuple):
    """The result of an engine that decodes photos itself."""

    errors: list[PhotoError | None]
    """What was wrong with each photo."""
    logits: Logits
    """The rows of the photos without error, in their order."""

    def split(self, num_photos: Sequence[int]) -> "list[EncodedInferenceResult]":
        """The results of consecutive groups of so many photos each."""
        results, photo, row = [], 0, 0
        for num in num_photos:
            errors = self.errors[photo : photo + num]
            num_rows = errors.count(None)
            results.append(
                EncodedInferenceResult(errors, Logits(*(part[row : row + num_rows] for part in self.logits)))
            )
            photo, row = photo + num, row + num_rows
        return results


class InferEncoded(Protocol):
    async def __call__(self, photos: Sequence[EncodedPhoto], *, with_embedding: bool = False) -> EncodedInferenceResult:
        """Infer from the encoded photos of one listing, each of at least one byte and at most the size limit."""
        ...


class AsyncEngine(Protocol):
    async def infer(self, photos_nhwc: npt.NDArray[np.uint8], *, with_embedding: bool = False) -> Logits:
        """Logits of (P, S, S, 3) uint8 photos of one listing; with their embeddings only if these are asked for.

        Raises:
            EngineUnavailable: not now; the same call may succeed later.
            EngineBusy: its queue is full or overdue.
            EngineBroken: the model rejects input that the bundle allows, or returns output that no model returns.
        """
        ...

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        """Like `infer`, but ahead of the calls that wait in this process."""
        ...

    @property
    def infer_encoded(self) -> InferEncoded | None:
        """Like `infer`, for encoded photos; None: it takes pixels only."""
        ...

    async def fetch_backend(self) -> str:
        """Name of what computes the logits, and decodes where it does so by its own means; certificates depend on it.

        Raises:
            EngineUnavailable: not known now.
        """
        ...

    async def close(self) -> None: ...
