"""Bound the calls that are open at once, in all and for each caller, before anything is read of them."""

import functools
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from serving.api.limits import HTTP_PEER_HEADER
from serving.api.status import Refusal, abort
from serving.auth.interceptor import CALLER
from serving.inference.fair_slots import CALLER_KEY
from serving.observability import metrics

__all__ = ["CallLimits", "CallLimitsInterceptor"]

WATCH_METHOD = "/grpc.health.v1.Health/Watch"
CHECK_METHOD = "/grpc.health.v1.Health/Check"
RETRY_DELAY_S = 1.0

Handler = "grpc.RpcMethodHandler[Any, Any]"


class CallLimits:
    """Counts open calls. Health checks and calls from this machine's own processes are in no limit."""

    def __init__(
        self, *, max_calls: int = 1024, max_caller_calls: int = 512, max_caller_streams: int = 64, max_watches: int = 64
    ) -> None:
        """Args:
        max_calls: of all callers together.
        max_caller_calls: of one caller, so that it leaves room for others.
        max_caller_streams: of one caller; a stream stays open for long.
        max_watches: of all, who need no token: `Health/Watch` stays open for ever.
        """
        self._max_calls = max_calls
        self._max_caller_calls = max_caller_calls
        self._max_caller_streams = max_caller_streams
        self._max_watches = max_watches
        self._num_calls = 0
        self._num_watches = 0
        self._by_caller: Counter[str] = Counter()
        self._streams_by_caller: Counter[str] = Counter()

    @contextmanager
    def open(self, method: str, *, caller: str, is_stream: bool) -> Iterator[None]:
        """Count a call while it is open.

        Raises:
            Refusal: TOO_BUSY.
        """
        kind = "watch" if method == WATCH_METHOD else "stream" if is_stream else "call"
        if limit := self._find_limit(kind, caller):
            metrics.CALLS_REFUSED.labels(limit).inc()
            metrics.CALLS.labels("TOO_BUSY", "").inc()
            raise Refusal(
                reason="TOO_BUSY",
                message="too many calls are open; close some, or try later",
                metadata={"limit": limit},
                retry_after_s=RETRY_DELAY_S,
            )
        self._count(kind, caller, 1)
        try:
            yield
        finally:
            self._count(kind, caller, -1)

    def _find_limit(self, kind: str, caller: str) -> str | None:
        """Return the name of the limit that one more call would exceed."""
        if kind == "watch":
            return "watch" if self._num_watches >= self._max_watches else None
        if self._num_calls >= self._max_calls:
            return "all"
        if self._by_caller[caller] >= self._max_caller_calls:
            return "caller"
        return "stream" if kind == "stream" and self._streams_by_caller[caller] >= self._max_caller_streams else None

    def _count(self, kind: str, caller: str, change: int) -> None:
        metrics.CALLS_IN_FLIGHT.labels(kind).inc(change)
        if kind == "watch":
            self._num_watches += change
            return
        self._num_calls += change
        for counter in (self._by_caller, *([self._streams_by_caller] if kind == "stream" else [])):
            counter[caller] += change
            if not counter[caller]:
                del counter[caller]


class CallLimitsInterceptor(grpc.aio.ServerInterceptor):
    """Applies the limits, and notes by whom the capacity of a call is shared."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method == CHECK_METHOD:
            return handler
        return _wrap_handler(handler, functools.partial(self._open, method, handler.response_streaming))

    @contextmanager
    def _open(self, method: str, is_stream: bool, context: "grpc.aio.ServicerContext[Any, Any]") -> Iterator[None]:
        peer = context.peer()
        is_local = peer.startswith("unix:")
        address = _read_http_peer(context) if is_local else peer.rpartition(":")[0]
        CALLER_KEY.set(CALLER.get() or address)
        if is_local and not CALLER.get():  # the HTTP process has limits of its own
            yield
            return
        with self._limits.open(method, caller=CALLER_KEY.get(), is_stream=is_stream):
            yield


def _read_http_peer(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Return the address of the HTTP caller; only our own processes reach the socket that tells it."""
    metadata = context.invocation_metadata() or ()
    return next((f"http:{value!s}" for name, value in metadata if name == HTTP_PEER_HEADER), "unix")


def _wrap_handler(handler: Any, opened: Callable[[Any], Any]) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return the handler with its calls counted while they are open."""
    kind = f"{_name_kind(handler.request_streaming)}_{_name_kind(handler.response_streaming)}"
    behaviour = getattr(handler, kind)

    async def call(request: Any, context: Any) -> Any:
        try:
            with opened(context):
                return await behaviour(request, context)
        except Refusal as refusal:
            del request  # as below
            await abort(context, refusal)
        except grpc.aio.AbortError as error:
            # gRPC keeps the error with the call's context. Its frames know both, and the photos: a cycle, which would
            # keep them until the garbage collector runs.
            del request
            error.__context__ = None
            raise error.with_traceback(None) from None

    async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with opened(context):
                async for response in behaviour(request, context):
                    yield response
        except Refusal as refusal:
            await abort(context, refusal)

    create: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped = generate if inspect.isasyncgenfunction(behaviour) else call
    return create(wrapped, handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


def _name_kind(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"
