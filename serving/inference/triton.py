"""A Triton server as an engine of the gateway."""

import asyncio
import contextvars
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from serving.inference.engine import EncodedInferenceResult, InferEncoded
from serving.inference.fair_slots import CALLER_KEY, MAX_SHARED_PHOTOS, FairSlots, SlotRequest
from serving.inference.model_names import MODEL_NAME
from serving.inference.triton_channel import TritonAccess
from serving.inference.triton_tensors import (
    BACKEND_PARAMETER,
    ENCODED_BACKEND_PARAMETER,
    ENCODED_NAME,
    ERRORS_NAME,
    GOLDEN_PRIORITY,
    YIELDS_PARAMETER,
    InputTensor,
    encode_files,
    encode_pixels,
    parse_logits,
    parse_photo_errors,
    serialize_request,
)
from serving.observability import tracing
from serving.observability.stage_timer import measure_stage
from vision.bundle import UNKNOWN_BACKEND
from vision.engine import OUTPUT_NAMES, SCOPE_NAME, Logits
from vision.errors import EngineBroken, EngineBusy, EngineError, EngineUnavailable
from vision.images import EncodedPhoto

__all__ = ["QUEUE_STAGE", "TritonEngine", "compute_max_concurrent_requests"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

MAX_ENCODED_PER_REQUEST = MAX_SHARED_PHOTOS
"""Encoded photos of one request; those of a larger listing are sent in several."""
MAX_SHARED_PHOTO_BYTES = 1 << 20
"""A larger photo is sent alone: rows are padded to the longest, and it takes longer."""
QUEUE_STAGE = "queue"
"""The stage of a call that waits for its turn at Triton."""
_RPC_TIMEOUT_S = 10.0
# Longer than Triton's own queue timeout (5 s) and the time in which a model decodes the photos of a listing
# (`vision.decoding.time_limits`), so that Triton is the first to give up.
_INFER_TIMEOUT_S = 20.0
# A full or overdue queue is UNAVAILABLE like a dead server; only Triton's message tells them apart.
_QUEUE_FULL_MESSAGES = ("Exceeds maximum queue size", "Request timeout expired")
_INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_YIELDS: contextvars.ContextVar[bool] = contextvars.ContextVar("yields", default=False)
_DEFAULT_MAX_CONCURRENT_REQUESTS = 64
"""The limit until the model's configuration is known."""


@dataclass(eq=False, kw_only=True)
class _Request(SlotRequest):
    """Photos that wait for their turn at Triton, and their result."""

    photos: Any
    """(P, S, S, 3) uint8, or the encoded photos of one listing."""
    send: Callable[[Sequence[Any]], Coroutine[Any, Any, Sequence[Any]]]
    """Sends the photos of the requests that share a slot; returns a result for each."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    result: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class TritonEngine:
    """One long-lived channel to a Triton server.

    It sends no more requests at once than keep the model's instances busy: a request that waits here can still be
    cancelled, one that waits in Triton cannot.
    """

    def __init__(
        self,
        address: str,
        *,
        model_name: str = MODEL_NAME,
        num_gateways: int = 1,
        allow_decoding: bool = True,
        priority: int = 0,
        access: TritonAccess | None = None,
    ) -> None:
        """Args:
        address: `HOST:PORT`, or `unix:PATH`.
        num_gateways: processes that share this Triton, and so its instances.
        allow_decoding: whether to send encoded photos to a model that takes them.
        priority: in Triton's queue, 1 being first; 0: the model's default.
        access: TLS and key of a Triton on another machine; None: neither.

        Raises:
            ListingVisionError: a file of `access` cannot be used.
        """
        access = access or TritonAccess()
        self._address = address
        self._model_name = model_name
        self._num_gateways = num_gateways
        self._headers = access.build_headers()
        self._channel = access.open_channel(address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # Without a serialiser the request goes out as it is.
        self._call_infer: Any = self._channel.unary_unary(
            _INFER_METHOD, response_deserializer=service_pb2.ModelInferResponse.FromString
        )
        output = service_pb2.ModelInferRequest.InferRequestedOutputTensor
        self._outputs = {name: output(name=name) for name in OUTPUT_NAMES}
        self._errors_output = output(name=ERRORS_NAME)
        self._slots = FairSlots[_Request](_DEFAULT_MAX_CONCURRENT_REQUESTS, self._start)
        self._allow_decoding = allow_decoding
        self._priority = priority
        self._decodes = False
        self._base_outputs: Sequence[str] = OUTPUT_NAMES[:2]
        self._in_flight: set[asyncio.Task[Any]] = set()

    @property
    def infer_encoded(self) -> InferEncoded | None:
        return self._queue_and_infer_encoded if self._decodes else None

    async def infer(self, photos_nhwc: npt.NDArray[np.uint8], *, with_embedding: bool = False) -> Logits:
        outputs = self._list_outputs(with_embedding)

        async def send(photos: Sequence[npt.NDArray[np.uint8]]) -> list[Logits]:
            return [await self._infer(photos[0], outputs)]

        request = _Request(caller=CALLER_KEY.get(), num_photos=len(photos_nhwc), photos=photos_nhwc, send=send)
        logits: Logits = await self._queue_and_send(request)
        return logits

    async def _queue_and_infer_encoded(
        self, photos: Sequence[EncodedPhoto], *, with_embedding: bool = False
    ) -> EncodedInferenceResult:
        """Infer in parts, so that a listing of many large photos does not occupy an instance for seconds."""
        outputs = self._list_outputs(with_embedding)
        parts = [photos[at : at + MAX_ENCODED_PER_REQUEST] for at in range(0, len(photos), MAX_ENCODED_PER_REQUEST)]
        if len(parts) == 1:
            result: EncodedInferenceResult = await self._queue_and_send(self._create_encoded_request(photos, outputs))
            return result
        results = await _gather(self._queue_and_send(self._create_encoded_request(part, outputs)) for part in parts)
        errors = [error for result in results for error in result.errors]
        logits = Logits(*map(np.concatenate, zip(*(result.logits for result in results), strict=True)))
        return EncodedInferenceResult(errors, logits)

    def _create_encoded_request(self, photos: Sequence[EncodedPhoto], outputs: Sequence[str]) -> _Request:
        is_small = all(len(photo) <= MAX_SHARED_PHOTO_BYTES for photo in photos)
        return _Request(
            caller=CALLER_KEY.get(),
            num_photos=len(photos),
            share_key=outputs if is_small else None,
            photos=photos,
            send=functools.partial(self._infer_encoded_listings, outputs=outputs),
        )

    async def _queue_and_send(self, request: _Request) -> Any:
        with measure_stage(QUEUE_STAGE):
            self._slots.submit(request)
            try:
                await request.started
            except asyncio.CancelledError:
                self._slots.withdraw(request)
                request.result.cancel()
                raise
        with measure_stage("model"):
            return await request.result

    def _start(self, requests: Sequence[_Request]) -> None:
        # A task of its own: a caller that cancels must not cancel the call to Triton, which others may share; and many
        # short deadlines and cancellations crash Triton before 24.12 (server#7368).
        requests[0].context.run(_YIELDS.set, requests[0].yields)
        task = asyncio.create_task(self._send(requests), context=requests[0].context)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _send(self, requests: Sequence[_Request]) -> None:
        began_s = time.monotonic()
        try:
            results = await requests[0].send([request.photos for request in requests])
        except Exception as error:
            _log.debug("call to Triton failed: %s", error)
            for request in requests:
                if not request.result.done():
                    request.result.set_exception(error)
        else:
            for request, result in zip(requests, results, strict=True):
                if not request.result.done():
                    request.result.set_result(result)
        finally:
            self._slots.release(requests, seconds=time.monotonic() - began_s)

    async def infer_golden(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        task = asyncio.create_task(self._infer(photos_nhwc, self._base_outputs, priority=GOLDEN_PRIORITY))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        return await asyncio.shield(task)

    async def fetch_backend(self) -> str:
        request = service_pb2.ModelConfigRequest(name=self._model_name)
        try:
            response = await self._stub.ModelConfig(request, timeout=_RPC_TIMEOUT_S, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            raise self._to_engine_error(error) from error
        num_requests = compute_max_concurrent_requests(response.config) // self._num_gateways
        self._slots.limit = max(2, num_requests)
        # As many as half of the instances compute at a time, so that another caller finds instances and cores.
        self._slots.caller_limit = max(1, num_requests // 4)
        offered = {tensor.name for tensor in response.config.output}
        self._base_outputs = (*OUTPUT_NAMES[:2], *({SCOPE_NAME} & offered))
        takes_encoded = any(tensor.name == ENCODED_NAME for tensor in response.config.input)
        self._decodes = self._allow_decoding and takes_encoded
        parameters = response.config.parameters
        for name in (ENCODED_BACKEND_PARAMETER, BACKEND_PARAMETER) if self._decodes else (BACKEND_PARAMETER,):
            if name in parameters:
                backend: str = parameters[name].string_value
                return backend
        # A repository that another program wrote does not name it.
        return UNKNOWN_BACKEND

    async def fetch_version(self) -> str:
        """Return the version of the server.

        Raises:
            EngineError: it does not respond.
        """
        request = service_pb2.ServerMetadataRequest()
        try:
            response = await self._stub.ServerMetadata(request, timeout=_RPC_TIMEOUT_S, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            raise self._to_engine_error(error) from error
        return str(response.version)

    async def load(self, *, timeout_s: float) -> None:
        """Have Triton load the model; where its files have changed, new processes replace the old ones.

        Raises:
            EngineUnavailable: it did not, or not in time.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=self._model_name)
        await self._call_model_control(self._stub.RepositoryModelLoad, request, "load", timeout_s)

    async def unload(self, *, timeout_s: float) -> None:
        """Have Triton unload the model.

        Raises:
            EngineUnavailable: it did not, or not in time.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=self._model_name)
        await self._call_model_control(self._stub.RepositoryModelUnload, request, "unload", timeout_s)

    async def _call_model_control(self, call: Any, request: Any, what: str, timeout_s: float) -> None:
        try:
            await call(request, timeout=timeout_s, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            raise EngineUnavailable(
                f"Triton at {self._address} did not {what} {self._model_name}: {error.details()}"
            ) from error

    async def close(self) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_INFER_TIMEOUT_S)
        await self._channel.close(None)

    async def _infer(self, photos_nhwc: npt.NDArray[np.uint8], outputs: Sequence[str], *, priority: int = 0) -> Logits:
        requested = [self._outputs[name] for name in outputs]
        response = await self._model_infer(encode_pixels(photos_nhwc), requested, priority=priority)
        return parse_logits(response, len(photos_nhwc), outputs=outputs, address=self._address)

    async def _infer_encoded_listings(
        self, listings: Sequence[Sequence[EncodedPhoto]], *, outputs: Sequence[str]
    ) -> list[EncodedInferenceResult]:
        """Infer from the photos of several listings in one request."""
        if len(listings) == 1:
            return [await self._infer_encoded(listings[0], outputs)]
        result = await self._infer_encoded([photo for photos in listings for photo in photos], outputs)
        return result.split([len(photos) for photos in listings])

    async def _infer_encoded(self, photos: Sequence[EncodedPhoto], outputs: Sequence[str]) -> EncodedInferenceResult:
        requested = [*(self._outputs[name] for name in outputs), self._errors_output]
        response = await self._model_infer(encode_files(photos), requested)
        errors = parse_photo_errors(response, len(photos))
        usable = [error is None for error in errors]
        logits = parse_logits(response, len(photos), usable, outputs=outputs, address=self._address)
        return EncodedInferenceResult(errors, logits)

    async def _model_infer(
        self, inputs: Sequence[InputTensor], outputs: Sequence[Any], *, priority: int = 0
    ) -> "service_pb2.ModelInferResponse":
        request = service_pb2.ModelInferRequest(model_name=self._model_name, outputs=outputs)
        if priority := priority or self._priority:
            request.parameters["priority"].uint64_param = priority
        if _YIELDS.get():
            request.parameters[YIELDS_PARAMETER].bool_param = True
        try:
            with tracing.sampled_client_span(_INFER_METHOD) as headers:
                response: service_pb2.ModelInferResponse = await self._call_infer(
                    serialize_request(request, inputs), timeout=_INFER_TIMEOUT_S, metadata=(*self._headers, *headers)
                )
                return response
        except grpc.aio.AioRpcError as error:
            raise self._to_engine_error(error) from error

    def _list_outputs(self, with_embedding: bool) -> Sequence[str]:
        return (*self._base_outputs, "embedding") if with_embedding else self._base_outputs

    def _to_engine_error(self, error: grpc.aio.AioRpcError) -> EngineError:
        message = f"Triton at {self._address}: {error.details()}"
        if any(words in message for words in _QUEUE_FULL_MESSAGES):
            return EngineBusy(message)
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        return EngineBroken(message) if error.code() in refused else EngineUnavailable(message)


async def _gather(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all calls; the first that fails cancels the others."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call) for call in calls]
    except* EngineError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


def compute_max_concurrent_requests(config: "model_config_pb2.ModelConfig") -> int:
    """Requests that keep all instances of a model busy: for each one batch that runs and one that waits.

    A request may have several photos, so that these are enough for batches.
    """
    instances = sum(max(1, group.count) * max(1, len(group.gpus)) for group in config.instance_group) or 1
    return 2 * instances * compute_batch_size(config)


def compute_batch_size(config: "model_config_pb2.ModelConfig") -> int:
    return max(config.dynamic_batching.preferred_batch_size, default=config.max_batch_size) or 1
