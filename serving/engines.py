"""What the gateway asks for logits: a Triton server, or ONNX Runtime in this process."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving.triton_repository import BACKEND_PARAMETER, MODEL_NAME
from vision.bundle import UNKNOWN_BACKEND, Bundle
from vision.engine import INPUT_NAME, OUTPUT_NAMES, Logits, OnnxEngine, check_golden
from vision.errors import EngineBroken, EngineBusy, EngineError, EngineUnavailable

__all__ = ["AsyncEngine", "InProcessEngine", "TritonEngine", "check"]

_log = logging.getLogger(__name__)

# Above Triton's own queue timeout (5 s), so that it is Triton that gives up first.
_RPC_TIMEOUT_S = 10.0
# A full or overdue queue is UNAVAILABLE like a dead server; only Triton's words tell them apart.
_QUEUE_WORDS = ("Exceeds maximum queue size", "Request timeout expired")


class AsyncEngine(Protocol):
    async def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        """Logits of (P, S, S, 3) uint8 photos of one listing.

        Raises:
            EngineUnavailable: not now; the same call may succeed later.
            EngineBusy: its queue is full or overdue.
            EngineBroken: the model refuses what the bundle says it takes.
        """
        ...

    async def backend(self) -> str:
        """What computes the logits: what promises are tied to.

        Raises:
            EngineUnavailable: not known now.
        """
        ...

    async def close(self) -> None: ...


async def check(engine: AsyncEngine, bundle: Bundle) -> None:
    """Raise an EngineError unless the engine answers the bundle's golden photos as the exported model did."""
    check_golden(bundle, await engine.infer(bundle.golden.photos_nhwc))


class TritonEngine:
    """One long-lived channel to a Triton server."""

    def __init__(self, address: str, *, model_name: str = MODEL_NAME) -> None:
        self._address = address
        self._model_name = model_name
        self._client = InferenceServerClient(
            address,
            channel_args=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # A Triton that comes back is found within seconds, not after gRPC's default of two minutes.
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self._outputs = [InferRequestedOutput(name) for name in OUTPUT_NAMES]
        self._in_flight: set[asyncio.Task[Logits]] = set()

    async def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        # A caller that gives up must not cancel the call to Triton: storms of short deadlines and
        # cancellations crash Triton before 24.12 (server#7368).
        task = asyncio.create_task(self._infer(photos_nhwc))
        self._in_flight.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def backend(self) -> str:
        try:
            answered = await self._client.get_model_config(self._model_name, client_timeout=_RPC_TIMEOUT_S)
        except InferenceServerException as error:
            raise self._translate(error) from error
        parameters = answered.config.parameters
        # A repository that others wrote does not say it.
        return parameters[BACKEND_PARAMETER].string_value if BACKEND_PARAMETER in parameters else UNKNOWN_BACKEND

    async def close(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_RPC_TIMEOUT_S)
        await self._client.close()

    async def _infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        photos = InferInput(INPUT_NAME, list(photos_nhwc.shape), "UINT8")
        photos.set_data_from_numpy(photos_nhwc)
        try:
            result = await self._client.infer(
                self._model_name, [photos], outputs=self._outputs, client_timeout=_RPC_TIMEOUT_S
            )
        except InferenceServerException as error:
            raise self._translate(error) from error
        answers = [result.as_numpy(name) for name in OUTPUT_NAMES]
        for name, answer in zip(OUTPUT_NAMES, answers, strict=True):
            if answer is None or answer.shape[:1] != photos_nhwc.shape[:1]:
                shape = None if answer is None else answer.shape
                raise EngineBroken(f"Triton at {self._address} answered {name} with shape {shape}")
        return Logits(*answers)

    def _translate(self, error: InferenceServerException) -> EngineError:
        said = f"Triton at {self._address}: {error.message()}"
        if any(words in said for words in _QUEUE_WORDS):
            return EngineBusy(said)
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        return EngineBroken(said) if error.status() in map(str, refused) else EngineUnavailable(said)

    def _forget(self, task: "asyncio.Task[Logits]") -> None:
        self._in_flight.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.debug("call to Triton failed: %s", task.exception())


class InProcessEngine:
    """ONNX Runtime on a thread of this process, one listing at a time with all cores."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine = OnnxEngine(bundle)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime")

    async def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.infer, photos_nhwc)
        except Exception as error:  # ONNX Runtime raises types of its own for whatever goes wrong inside
            raise EngineBroken(f"ONNX Runtime: {error}") from error

    async def backend(self) -> str:
        return self._engine.backend

    async def close(self) -> None:
        self._thread.shutdown(wait=True)
