"""What the gateway asks for logits: a Triton server, or ONNX Runtime in this process."""

import asyncio
import contextlib
import logging
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from serving.decoding.fork_server import parse_photo_error
from serving.observability import tracing
from serving.observability.stage_timer import measure_stage
from serving.triton.repository import (
    BACKEND_PARAMETER,
    ENCODED_BACKEND_PARAMETER,
    ENCODED_NAME,
    ERRORS_NAME,
    MODEL_NAME,
    SIZES_NAME,
)
from vision.bundle import UNKNOWN_BACKEND, Bundle
from vision.engine import INPUT_NAME, OUTPUT_NAMES, Logits, OnnxEngine, check_golden
from vision.errors import EngineBroken, EngineBusy, EngineError, EngineUnavailable, PhotoError

__all__ = [
    "AsyncEngine",
    "EncodedInferenceResult",
    "InProcessEngine",
    "InferEncoded",
    "TritonEngine",
    "check_golden_photos",
    "compute_max_concurrent_requests",
    "wait_for_golden_photos",
]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Above Triton's own queue timeout (5 s), so that it is Triton that gives up first.
_RPC_TIMEOUT_S = 10.0
# A full or overdue queue is UNAVAILABLE like a dead server; only Triton's words tell them apart.
_QUEUE_FULL_MESSAGES = ("Exceeds maximum queue size", "Request timeout expired")
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A Triton that comes back is found within seconds, not after gRPC's default of two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_DEFAULT_MAX_CONCURRENT_REQUESTS = 64
"""Until the model's configuration says how many are of use."""


class EncodedInferenceResult(NamedTuple):
    """What an engine that decodes found."""

    errors: list[PhotoError | None]
    """What was wrong with each photo."""
    logits: Logits
    """Of those without error, in their order."""


InferEncoded = Callable[[Sequence[bytes]], Coroutine[Any, Any, EncodedInferenceResult]]


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

    @property
    def infer_encoded(self) -> "InferEncoded | None":
        """As `infer`, of encoded photos, each of at least a byte and at most the limit; None: it takes pixels only."""
        ...

    async def fetch_backend(self) -> str:
        """What computes the logits, and decodes where it does so by its own means: what promises are tied to.

        Raises:
            EngineUnavailable: not known now.
        """
        ...

    async def close(self) -> None: ...


async def check_golden_photos(
    engine: AsyncEngine, bundle: Bundle, *, which: slice = slice(None), timeout_s: float = 60.0
) -> None:
    """Raise an EngineError unless the engine answers the bundle's golden photos, or some, as the exported model did."""
    try:
        async with asyncio.timeout(timeout_s):
            logits = await engine.infer_golden(bundle.golden.photos_nhwc[which])
    except TimeoutError:
        raise EngineUnavailable(f"the golden photos were not answered within {timeout_s:g} s") from None
    check_golden(bundle, logits, which=which)


async def wait_for_golden_photos(engine: AsyncEngine, bundle: Bundle, *, timeout_s: float = 60.0) -> None:
    """Return once the golden photos are answered rightly.

    Raises:
        EngineBroken: they are answered wrongly.
        EngineUnavailable: not in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(EngineUnavailable, EngineBusy):
                    return await check_golden_photos(engine, bundle)
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise EngineUnavailable(f"the golden photos were not answered within {timeout_s:g} s") from None


class TritonEngine:
    """One long-lived channel to a Triton server.

    No more requests are on their way at once than keep the model's instances fed: what waits here can still be given
    up, what waits in Triton cannot.
    """

    def __init__(
        self, address: str, *, model_name: str = MODEL_NAME, num_gateways: int = 1, allow_decoding: bool = True
    ) -> None:
        """Args:
        num_gateways: that share this Triton on this machine, and so its instances.
        may_decode: whether a model that takes encoded photos is to be sent these.
        """
        self._address = address
        self._model_name = model_name
        self._num_gateways = num_gateways
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        output = service_pb2.ModelInferRequest.InferRequestedOutputTensor
        self._outputs = [output(name=name) for name in OUTPUT_NAMES]
        self._errors_output = output(name=ERRORS_NAME)
        self._slots = _Slots(_DEFAULT_MAX_CONCURRENT_REQUESTS)
        self._allow_decoding = allow_decoding
        self._decodes = False
        self._in_flight: set[asyncio.Task[Any]] = set()

    @property
    def infer_encoded(self) -> InferEncoded | None:
        return self._queue_and_infer_encoded if self._decodes else None

    async def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return await self._run_in_slot(lambda: self._infer(photos_nhwc))

    async def _queue_and_infer_encoded(self, photos: Sequence[bytes]) -> EncodedInferenceResult:
        return await self._run_in_slot(lambda: self._infer_encoded(photos))

    async def _run_in_slot(self, begin: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        with measure_stage("queue"):
            await self._slots.acquire()
        with measure_stage("model"):
            return await self._run_shielded(begin(), self._slots)

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return await self._run_shielded(self._infer(photos_nhwc), None)

    async def fetch_backend(self) -> str:
        request = service_pb2.ModelConfigRequest(name=self._model_name)
        try:
            response = await self._stub.ModelConfig(request, timeout=_RPC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._to_engine_error(error) from error
        self._slots.limit = max(2, -(-compute_max_concurrent_requests(response.config) // self._num_gateways))
        takes_encoded = any(tensor.name == ENCODED_NAME for tensor in response.config.input)
        self._decodes = self._allow_decoding and takes_encoded
        parameters = response.config.parameters
        for name in (ENCODED_BACKEND_PARAMETER, BACKEND_PARAMETER) if self._decodes else (BACKEND_PARAMETER,):
            if name in parameters:
                backend: str = parameters[name].string_value
                return backend
        # A repository that others wrote does not say it.
        return UNKNOWN_BACKEND

    async def load(self, *, timeout_s: float) -> None:
        """Have Triton load the model; where its files have changed, new processes answer once the old ones need not.

        Raises:
            EngineUnavailable: it does not, or not in time.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=self._model_name)
        await self._call_model_control(self._stub.RepositoryModelLoad, request, "load", timeout_s)

    async def unload(self, *, timeout_s: float) -> None:
        """Have Triton let go of the model.

        Raises:
            EngineUnavailable: it does not, or not in time.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=self._model_name)
        await self._call_model_control(self._stub.RepositoryModelUnload, request, "unload", timeout_s)

    async def _call_model_control(self, call: Any, request: Any, what: str, timeout_s: float) -> None:
        try:
            await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise EngineUnavailable(
                f"Triton at {self._address} does not {what} {self._model_name}: {error.details()}"
            ) from error

    async def close(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_RPC_TIMEOUT_S)
        await self._channel.close(None)

    async def _run_shielded(self, call: Coroutine[Any, Any, _T], slots: "_Slots | None") -> _T:
        # A caller that gives up must not cancel the call to Triton: storms of short deadlines and
        # cancellations crash Triton before 24.12 (server#7368).
        task = asyncio.create_task(call)
        self._in_flight.add(task)

        def on_done(task: "asyncio.Task[_T]") -> None:
            if slots:
                slots.release()
            self._in_flight.discard(task)
            if not task.cancelled() and task.exception() is not None:
                _log.debug("call to Triton failed: %s", task.exception())

        task.add_done_callback(on_done)
        return await asyncio.shield(task)

    async def _infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        photos = _InputTensor(INPUT_NAME, "UINT8", photos_nhwc.shape, photos_nhwc.tobytes())
        return self._parse_logits(await self._model_infer([photos], self._outputs), len(photos_nhwc))

    async def _infer_encoded(self, photos: Sequence[bytes]) -> EncodedInferenceResult:
        longest = max(map(len, photos))
        rows = photos[0] if len(photos) == 1 else b"".join(photo.ljust(longest, b"\0") for photo in photos)
        inputs = [
            _InputTensor(ENCODED_NAME, "UINT8", (len(photos), longest), rows),
            _InputTensor(SIZES_NAME, "INT32", (len(photos), 1), np.array([*map(len, photos)], np.int32).tobytes()),
        ]
        response = await self._model_infer(inputs, [*self._outputs, self._errors_output])
        errors = _parse_photo_errors(response, len(photos))
        return EncodedInferenceResult(
            errors, self._parse_logits(response, len(photos), usable=[error is None for error in errors])
        )

    async def _model_infer(
        self, inputs: "Sequence[_InputTensor]", outputs: Sequence[Any]
    ) -> "service_pb2.ModelInferResponse":
        tensor = service_pb2.ModelInferRequest.InferInputTensor
        request = service_pb2.ModelInferRequest(
            model_name=self._model_name,
            inputs=[
                tensor(name=input_tensor.name, datatype=input_tensor.datatype, shape=input_tensor.shape)
                for input_tensor in inputs
            ],
            outputs=outputs,
            raw_input_contents=[input_tensor.raw for input_tensor in inputs],
        )
        try:
            with tracing.sampled_client_span(_INFER_METHOD) as headers:
                return await self._stub.ModelInfer(request, timeout=_RPC_TIMEOUT_S, metadata=headers)
        except grpc.aio.AioRpcError as error:
            raise self._to_engine_error(error) from error

    def _parse_logits(
        self, response: "service_pb2.ModelInferResponse", num_photos: int, usable: Sequence[bool] | None = None
    ) -> Logits:
        """The logits of all photos, or of the usable ones."""
        found: dict[str, npt.NDArray[np.float32]] = {}
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
            shape = tuple(output.shape)
            if output.datatype == "FP32" and shape[:1] == (num_photos,) and len(raw) == 4 * np.prod(shape):
                found[output.name] = np.frombuffer(raw, np.float32).reshape(shape)
        missing = [name for name in OUTPUT_NAMES if name not in found]
        if missing:
            raise EngineBroken(f"Triton at {self._address} gave no {', '.join(missing)} for {num_photos} photos")
        logits = Logits(*(found[name] for name in OUTPUT_NAMES))
        if usable is not None and not all(usable):
            logits = Logits(*(rows[np.asarray(usable)] for rows in logits))
        # A model process with the wrong NumPy beside it answers zeros without any error.
        if len(logits.category) and not (np.isfinite(logits.category).all() and logits.category.any()):
            raise EngineBroken(f"Triton at {self._address} answered category logits that are zero or not finite")
        return logits

    def _to_engine_error(self, error: grpc.aio.AioRpcError) -> EngineError:
        message = f"Triton at {self._address}: {error.details()}"
        if any(words in message for words in _QUEUE_FULL_MESSAGES):
            return EngineBusy(message)
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        return EngineBroken(message) if error.code() in refused else EngineUnavailable(message)


class _InputTensor(NamedTuple):
    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes


def _parse_photo_errors(response: "service_pb2.ModelInferResponse", num_photos: int) -> list[PhotoError | None]:
    """What a model that decodes says of each photo: BYTES [N, 1], each element four bytes of length and its text."""
    at = [output.name for output in response.outputs].index(ERRORS_NAME)
    raw = response.raw_output_contents[at]
    errors: list[PhotoError | None] = []
    position = 0
    for _ in range(num_photos):
        (length,) = struct.unpack_from("<I", raw, position)
        text = raw[position + 4 : position + 4 + length]
        errors.append(parse_photo_error(text) if text else None)
        position += 4 + length
    return errors


def compute_max_concurrent_requests(config: "model_config_pb2.ModelConfig") -> int:
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
        with measure_stage("model"):
            return await self.infer_golden(photos_nhwc)

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.infer, photos_nhwc)
        except Exception as error:  # ONNX Runtime raises types of its own for whatever goes wrong inside
            raise EngineBroken(f"ONNX Runtime: {error}") from error

    @property
    def infer_encoded(self) -> None:
        return None

    async def fetch_backend(self) -> str:
        return self._engine.backend

    async def close(self) -> None:
        self._thread.shutdown(wait=True)


class _Slots:
    """A semaphore whose limit may change while it is in use; first come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._num_acquired = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        if self._num_acquired < self.limit and not self._waiting:
            self._num_acquired += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come in the same moment
                self.release()
            raise

    def release(self) -> None:
        self._num_acquired -= 1
        while self._waiting and self._num_acquired < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._num_acquired += 1
                turn.set_result(None)
