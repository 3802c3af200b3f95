"""Refuse calls by their headers while the gateway is overloaded, without the cost of reading their photos."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.listing_request import ListingRequest, NumberedRequest
from serving.api.status import Refusal, abort
from serving.gateway.admission import Admission
from serving.gateway.deadline import check_deadline, read_deadline_s
from serving.gateway.inference import check_breaker
from serving.gateway.receiving import Receiver
from serving.inference.fair_slots import CALLER_KEY
from serving.observability import metrics
from serving.rollout.router import Router

__all__ = ["SERVICE_NAME", "EarlyRejectionInterceptor"]

_log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ListingVisionService"].full_name
CLASSIFY_METHOD = f"/{SERVICE_NAME}/ClassifyListing"
STREAM_METHOD = f"/{SERVICE_NAME}/ClassifyListings"
_PARSERS = {CLASSIFY_METHOD: ListingRequest.parse, STREAM_METHOD: NumberedRequest.parse}


class EarlyRejectionInterceptor(grpc.aio.ServerInterceptor):
    """Handles the unary ClassifyListing as a stream of one message, and receives messages within bounds.

    gRPC reads a unary call's message before it calls the handler, and a streaming call's when the handler asks for it;
    on the wire they are the same.
    """

    def __init__(self, router: Router, admission: Admission) -> None:
        self._router = router
        self._admission = admission
        self._receiver = Receiver(
            num_held_bytes=lambda: admission.num_bytes, get_typical_bytes=admission.callers.get_typical_bytes
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method not in _PARSERS:
            return handler  # type: ignore[no-any-return]
        parse = _PARSERS[handler_call_details.method]

        async def receive(context: Any, deadline_s: float | None, **options: Any) -> Any:
            message = await self._receiver.receive(
                context.read, caller=CALLER_KEY.get(), peer=context.peer(), deadline_s=deadline_s, **options
            )
            if message is None:
                return None
            # gRPC has copied the message, which takes a large one tens of milliseconds: others' turn.
            await asyncio.sleep(0)
            try:
                return parse(message)
            except DecodeError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is not a valid request: {error}")

        @contextmanager
        def expect(context: Any) -> Iterator[None]:
            self._reject_early(read_deadline_s(context))  # other messages may have come while this one waited
            with self._admission.callers.expect(CALLER_KEY.get()):
                yield

        async def classify(_: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            try:
                self._reject_early(read_deadline_s(context))
                request = await receive(context, read_deadline_s(context), expect=lambda: expect(context))
            except Refusal as refusal:
                _log.debug("a call is rejected early: %s", refusal.reason)
                metrics.CALLS.labels(refusal.reason, self._router.stable.label).inc()
                await abort(context, refusal)
            if request is None:  # the caller disconnected, or sent no message
                return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")
            return await handler.unary_unary(request, context)

        async def classify_stream(_: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            async def receive_all() -> AsyncIterator[Any]:
                while (request := await receive(context, None)) is not None:
                    yield request

            return await handler.stream_stream(receive_all(), context)

        if handler_call_details.method == STREAM_METHOD:
            return grpc.stream_stream_rpc_method_handler(classify_stream, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(classify, None, handler.response_serializer)

    def _reject_early(self, deadline_s: float) -> None:
        """Raise the Refusal that the call would certainly get once its photos were read."""
        check_deadline(deadline_s)
        check_breaker(self._router.stable)
        self._admission.reject_early(deadline_s=deadline_s, caller=CALLER_KEY.get())
