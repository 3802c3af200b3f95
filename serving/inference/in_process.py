"""ONNX Runtime in this process as an engine of the gateway."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from serving.observability.stage_timer import measure_stage
from vision.bundle import Bundle
from vision.engine import Logits, OnnxEngine
from vision.errors import EngineBroken

__all__ = ["InProcessEngine"]


class InProcessEngine:
    """Computes one listing at a time, with all cores, on a thread of this process."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine = OnnxEngine(bundle)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime")

    async def infer(self, photos_nhwc: npt.NDArray[np.uint8], *, with_embedding: bool = False) -> Logits:
        with measure_stage("model"):
            return await self.infer_golden(photos_nhwc)

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.infer, photos_nhwc)
        except Exception as error:  # ONNX Runtime raises its own types for whatever goes wrong inside
            raise EngineBroken(f"ONNX Runtime: {error}") from error

    @property
    def infer_encoded(self) -> None:
        return None

    async def fetch_backend(self) -> str:
        return self._engine.backend

    async def close(self) -> None:
        self._thread.shutdown(wait=True)
