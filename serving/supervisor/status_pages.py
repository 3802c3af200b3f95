"""The pages of the status port: metrics, liveness, readiness."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import grpc
import prometheus_client
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.observability.admin_http import HttpResponse
from serving.observability.metrics import MetricsFolder
from serving.processes.sockets import gateway_socket_address

__all__ = ["StatusPages"]

READY_TIMEOUT_S = 2.0
LIVENESS_TIMEOUT_S = 5.0
SERVING = "SERVING"


class StatusPages:
    """Reads the state of a supervisor's processes when a page is requested."""

    def __init__(
        self,
        metrics: MetricsFolder,
        *,
        list_gateways: Callable[[], Sequence[int]],
        fetch_triton_metrics: Callable[[], bytes],
        list_problems: Callable[[], Sequence[str]],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        """Args:
        list_gateways: pids of the gateway processes.
        fetch_triton_metrics: in Prometheus' text format; empty if no Triton runs here.
        list_problems: what does not work as configured though callers are served, a line each.
        loop: the supervisor's, which must run; None: it does not yet.
        """
        self._metrics = metrics
        self._list_gateways = list_gateways
        self._fetch_triton_metrics = fetch_triton_metrics
        self._list_problems = list_problems
        self._loop = loop

    @property
    def by_path(self) -> Mapping[str, Callable[[], HttpResponse]]:
        """Paths, each with the function that responds."""
        return {
            "/metrics": lambda: HttpResponse(200, prometheus_client.CONTENT_TYPE_LATEST, self._render_metrics()),
            "/healthz": self._check_liveness,
            "/readyz": self._check_readiness,
        }

    def _render_metrics(self) -> bytes:
        """Return the metrics of all processes, and of Triton if it runs here: batch sizes, queues, GPU."""
        return self._metrics.render() + self._fetch_triton_metrics()

    def _check_liveness(self) -> HttpResponse:
        """Return 200 if the supervisor's event loop runs. This is another thread, which says nothing by itself."""
        if self._loop is not None:
            turn = threading.Event()
            self._loop.call_soon_threadsafe(turn.set)
            if not turn.wait(LIVENESS_TIMEOUT_S):
                detail = f"the supervisor has not run for {LIVENESS_TIMEOUT_S:g} s\n"
                return HttpResponse(503, "text/plain", detail.encode())
        return HttpResponse(200, "text/plain", b"alive\n")

    def _check_readiness(self) -> HttpResponse:
        """Return 200 if any gateway process serves, by the health that clients see."""
        states = [self._fetch_health(pid) for pid in self._list_gateways()]
        is_ready = SERVING in states
        first = "ready" if is_ready else f"not ready: {', '.join(states) or 'no gateway process'}"
        lines = [first, *(f"degraded: {problem}" for problem in self._list_problems())]
        return HttpResponse(200 if is_ready else 503, "text/plain", ("\n".join(lines) + "\n").encode())

    def _fetch_health(self, pid: int) -> str:
        """Return `SERVING`, another health, or the status of a failed call."""
        address, options = gateway_socket_address(self._metrics.path, pid), [("grpc.enable_http_proxy", 0)]
        try:
            with grpc.insecure_channel(address, options=options) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                response = health.Check(health_pb2.HealthCheckRequest(), timeout=READY_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
