"""What the gateway asks for logits: a Triton server, or ONNX Runtime in this process."""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from serving.triton_repository import BACKEND_PARAMETER, MODEL_NAME
from vision.bundle import UNKNOWN_BACKEND, Bundle
from vision.engine import INPUT_NAME, OUTPUT_NAMES, Logits, OnnxEngine, check_golden
from vision.errors import EngineBroken, EngineBusy, EngineError, EngineUnavailable

__all__ = ["AsyncEngine", "InProcessEngine", "TritonEngine", "check", "requests_at_once"]

_log = logging.getLogger(__name__)

# Above Triton's own queue timeout (5 s), so that it is Triton that gives up first.
_RPC_TIMEOUT_S = 10.0
# A full or overdue queue is UNAVAILABLE like a dead server; only Triton's words tell them apart.
_QUEUE_WORDS = ("Exceeds maximum queue size", "Request timeout expired")
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A Triton that comes back is found within seconds, not after gRPC's default of two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_REQUESTS_AT_ONCE_UNKNOWN = 64
"""Until the model's configuration says how many are of use."""


class AsyncEngine(Protocol):
    async def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        """Logits of (P, S, S, 3) uint8 photos of one listing.

        Raises:
            EngineUnavailable: not now; the same call may succeed later.
            EngineBusy: its queue is full or overdue.
            EngineBroken: the model refuses what the bundle says it takes, or answers what no model would.
        """
        ...

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        """As `infer`, ahead of whatever waits in this process."""
        ...

    async def backend(self) -> str:
        """What computes the logits: what promises are tied to.

        Raises:
            EngineUnavailable: not known now.
        """
        ...

    async def close(self) -> None: ...


async def check(engine: AsyncEngine, bundle: Bundle, *, which: slice = slice(None), timeout_s: float = 60.0) -> None:
    """Raise an EngineError unless the engine answers the bundle's golden photos, or some, as the exported model did."""
    try:
        async with asyncio.timeout(timeout_s):
            answered = await engine.infer_golden(bundle.golden.photos_nhwc[which])
    except TimeoutError:
        raise EngineUnavailable(f"the golden photos were not answered within {timeout_s:g} s") from None
    check_golden(bundle, answered, which=which)


class TritonEngine:
    """One long-lived channel to a Triton server.

    No more requests are on their way at once than keep the model's instances fed: what waits here can still be given
    up, what waits in Triton cannot.
    """

    def __init__(self, address: str, *, model_name: str = MODEL_NAME, num_gateways: int = 1) -> None:
        """Args: num_gateways: that share this Triton on this machine, and so its instances."""
        self._address = address
        self._model_name = model_name
        self._num_gateways = num_gateways
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        output = service_pb2.ModelInferRequest.InferRequestedOutputTensor
        self._outputs = [output(name=name) for name in OUTPUT_NAMES]
        self._slots = _Slots(_REQUESTS_AT_ONCE_UNKNOWN)
        self._in_flight: set[asyncio.Task[Logits]] = set()

    async def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        await self._slots.take()
        return await self._shielded(photos_nhwc, self._slots)

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return await self._shielded(photos_nhwc, None)

    async def backend(self) -> str:
        request = service_pb2.ModelConfigRequest(name=self._model_name)
        try:
            answered = await self._stub.ModelConfig(request, timeout=_RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error
        self._slots.limit = max(2, -(-requests_at_once(answered.config) // self._num_gateways))
        parameters = answered.config.parameters
        # A repository that others wrote does not say it.
        return parameters[BACKEND_PARAMETER].string_value if BACKEND_PARAMETER in parameters else UNKNOWN_BACKEND

    async def reload(self, *, timeout_s: float = 30.0) -> None:
        """Have Triton unload the model and load it again: new model processes, the same server.

        Raises:
            EngineUnavailable: it does not, or not in time.
        """
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=self._model_name)
        load = service_pb2.RepositoryModelLoadRequest(model_name=self._model_name)
        try:
            await self._stub.RepositoryModelUnload(unload, timeout=timeout_s)
            await self._stub.RepositoryModelLoad(load, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise EngineUnavailable(f"Triton at {self._address} does not load anew: {error.details()}") from error

    async def close(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_RPC_TIMEOUT_S)
        await self._channel.close(None)

    async def _shielded(self, photos_nhwc: npt.NDArray[np.uint8], slots: "_Slots | None") -> Logits:
        # A caller that gives up must not cancel the call to Triton: storms of short deadlines and
        # cancellations crash Triton before 24.12 (server#7368).
        task = asyncio.create_task(self._infer(photos_nhwc))
        self._in_flight.add(task)

        def ended(task: "asyncio.Task[Logits]") -> None:
            if slots:
                slots.give_back()
            self._in_flight.discard(task)
            if not task.cancelled() and task.exception() is not None:
                _log.debug("call to Triton failed: %s", task.exception())

        task.add_done_callback(ended)
        return await asyncio.shield(task)

    async def _infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        tensor = service_pb2.ModelInferRequest.InferInputTensor
        request = service_pb2.ModelInferRequest(
            model_name=self._model_name,
            inputs=[tensor(name=INPUT_NAME, datatype="UINT8", shape=photos_nhwc.shape)],
            outputs=self._outputs,
            raw_input_contents=[photos_nhwc.tobytes()],
        )
        try:
            answered = await self._stub.ModelInfer(request, timeout=_RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error
        return self._read(answered, len(photos_nhwc))

    def _read(self, answered: "service_pb2.ModelInferResponse", num_photos: int) -> Logits:
        found: dict[str, npt.NDArray[np.float32]] = {}
        for output, raw in zip(answered.outputs, answered.raw_output_contents, strict=False):
            shape = tuple(output.shape)
            if output.datatype == "FP32" and shape[:1] == (num_photos,) and len(raw) == 4 * np.prod(shape):
                found[output.name] = np.frombuffer(raw, np.float32).reshape(shape)
        missing = [name for name in OUTPUT_NAMES if name not in found]
        if missing:
            raise EngineBroken(f"Triton at {self._address} gave no {', '.join(missing)} for {num_photos} photos")
        logits = Logits(*(found[name] for name in OUTPUT_NAMES))
        # A model process with the wrong NumPy beside it answers zeros without any error.
        if not (np.isfinite(logits.category).all() and logits.category.any()):
            raise EngineBroken(f"Triton at {self._address} answered category logits that are zero or not finite")
        return logits

    def _translate(self, error: grpc.aio.AioRpcError) -> EngineError:
        said = f"Triton at {self._address}: {error.details()}"
        if any(words in said for words in _QUEUE_WORDS):
            return EngineBusy(said)
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        return EngineBroken(said) if error.code() in refused else EngineUnavailable(said)


def requests_at_once(config: "model_config_pb2.ModelConfig") -> int:
    """Requests that keep all instances of a model fed: for each a batch that runs, and one that waits for it."""
    instances = sum(max(1, group.count) * max(1, len(group.gpus)) for group in config.instance_group) or 1
    batch: int = max(config.dynamic_batching.preferred_batch_size, default=config.max_batch_size) or 1
    return 2 * instances * batch


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

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return await self.infer(photos_nhwc)

    async def backend(self) -> str:
        return self._engine.backend

    async def close(self) -> None:
        self._thread.shutdown(wait=True)


class _Slots:
    """A semaphore whose limit may change while it is in use; first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        if self._taken < self.limit and not self._waiting:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come in the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
