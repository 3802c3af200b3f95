"""Rejects gRPC calls without a valid bearer token."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import grpc

from serving.api.status import Refusal, abort
from serving.observability.metrics import CALLS

__all__ = ["CALLER", "AuthInterceptor", "TokenVerifier"]

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Name of the caller of the current call; empty where callers need no token."""
_PUBLIC_METHOD_PREFIX = "/grpc.health.v1.Health/"
"""Load balancers have no token."""
_BEARER = "bearer "


class TokenVerifier(Protocol):
    """Identifies callers by their bearer tokens."""

    async def identify_caller(self, token: str) -> str | None:
        """The caller's name; None: the token is not valid."""
        ...


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Answers calls without a valid token with UNAUTHENTICATED, without details and before any photo is read."""

    def __init__(self, *verifiers: TokenVerifier) -> None:
        """Args: verifiers: tried in this order."""
        self._verifiers = verifiers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        if handler_call_details.method.startswith(_PUBLIC_METHOD_PREFIX):
            return await continuation(handler_call_details)
        caller = await self._identify_caller(handler_call_details)
        if caller is None:
            CALLS.labels("UNAUTHENTICATED", "").inc()
            return _UNAUTHENTICATED_HANDLER
        CALLER.set(caller)
        return await continuation(handler_call_details)

    async def _identify_caller(self, details: grpc.HandlerCallDetails) -> str | None:
        for name, value in details.invocation_metadata or ():
            if name == "authorization" and isinstance(value, str) and value.lower().startswith(_BEARER):
                token = value[len(_BEARER) :].strip()
                for verifier in self._verifiers:
                    if caller := await verifier.identify_caller(token):
                        return caller
                return None
        return None


async def _reject(requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
    await abort(context, Refusal(reason="UNAUTHENTICATED", message="unauthenticated"))


_UNAUTHENTICATED_HANDLER: "grpc.RpcMethodHandler[Any, Any]" = grpc.stream_stream_rpc_method_handler(_reject)
