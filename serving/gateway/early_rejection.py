"""Refuse calls by their headers while the gateway is overloaded, without the cost of reading their photos."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.status import Refusal, abort
from serving.gateway.admission import Admission
from serving.gateway.deadline import check_deadline, read_deadline_s
from serving.gateway.inference import check_breaker
from serving.observability import metrics
from serving.rollout.router import Router

__all__ = ["SERVICE_NAME", "EarlyRejectionInterceptor"]

_log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ListingVisionService"].full_name
CLASSIFY_METHOD = f"/{SERVICE_NAME}/ClassifyListing"


class EarlyRejectionInterceptor(grpc.aio.ServerInterceptor):
    """Handles the unary ClassifyListing as a stream of one message.

    gRPC reads a unary call's message before it calls the handler, and a streaming call's when the handler asks for it;
    on the wire they are the same.
    """

    def __init__(self, router: Router, admission: Admission) -> None:
        self._router = router
        self._admission = admission

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method != CLASSIFY_METHOD:
            return handler

        classify: Any = handler.unary_unary

        async def handle(requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            try:
                self._reject_early(read_deadline_s(context))
            except Refusal as refusal:
                _log.debug("a call is rejected early: %s", refusal.reason)
                await abort(context, refusal)
            async for request in requests:
                return await classify(request, context)
            # The caller disconnected, or sent no message.
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")

        return grpc.stream_unary_rpc_method_handler(handle, handler.request_deserializer, handler.response_serializer)

    def _reject_early(self, deadline_s: float) -> None:
        """Raise the Refusal that the call would certainly get once its photos were read."""
        try:
            check_deadline(deadline_s)
            check_breaker(self._router.stable)
            self._admission.reject_early(deadline_s=deadline_s)
        except Refusal as refusal:
            metrics.CALLS.labels(refusal.reason, self._router.stable.label).inc()
            raise
