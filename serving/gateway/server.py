"""One gateway process: its releases, gRPC server, health that follows the model, a shutdown that loses no call."""

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.api.limits import MESSAGE_LIMIT_BYTES, PHOTO_LIMITS
from serving.auth.interceptor import AuthInterceptor
from serving.auth.quota import PhotoQuota
from serving.config import ServeOptions
from serving.gateway.admission import MAX_PHOTOS_IN_FLIGHT, Admission, ThroughputEstimator
from serving.gateway.service import SERVICE_NAME, EarlyRejectionInterceptor, Gateway
from serving.observability.metrics import BREAKER_OPEN, SERVING
from serving.processes.sockets import gateway_socket_address
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.rollout.release import ServedRelease
from serving.rollout.router import Router, create_single_release_split
from serving.rollout.traffic_split import TrafficSplit
from vision.errors import EngineUnavailable

if TYPE_CHECKING:
    from serving.gateway.photo_fetch import PhotoFetcher
    from serving.outcomes.writer import Recorder

__all__ = ["GatewayServer"]

_log = logging.getLogger(__name__)


class GatewayServer:
    """Start it, serve, stop it. Asks the Triton at `options.triton`, or ONNX Runtime in this process."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._health = health.aio.HealthServicer()
        self._router = Router(options, on_change=self._on_release_change)
        self._recorder: Recorder | None = None
        self._photo_fetcher: PhotoFetcher | None = None
        self._gateway: Gateway | None = None
        self._health_tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Bind, and return once the golden photos were asked for.

        With ONNX Runtime in this process they must be answered rightly; with a Triton it starts whatever they say, and
        health follows.

        Raises:
            EngineError: the model in this process does not answer, or not rightly.
            OSError: the port is taken.
        """
        try:
            traffic_split = self._options.traffic_split
            if traffic_split is None:
                traffic_split = await asyncio.to_thread(create_single_release_split, self._options)
            await self._router.apply(traffic_split)
            stable = self._router.stable
            if not stable.is_healthy and self._options.triton is None:
                raise EngineUnavailable(f"the model does not answer its golden photos: {stable.last_error}")
            await self._start_server()
        except BaseException:
            await self._close()
            raise

    async def apply_traffic_split(self, traffic_split: TrafficSplit) -> None:
        """Have releases answer so from now on.

        Raises:
            ListingVisionError: one cannot be brought up, or is not well; nothing has changed.
        """
        await self._router.apply(traffic_split)

    def list_unhealthy(self) -> list[str]:
        """Labels of releases that have failed since they got their part."""
        return self._router.list_unhealthy()

    async def stop(self) -> None:
        """NOT_SERVING first, then calls in flight, then the engine."""
        try:
            assert self._gateway is not None
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(self._options.drain_s)
            self._gateway.streams.close()
            await self._server.stop(self._options.grace_period_s)
        finally:
            await self._close()

    async def _start_server(self) -> None:
        if self._options.photo_uris:
            from serving.gateway.photo_fetch import PhotoFetcher  # aiohttp, only where it is asked for

            self._photo_fetcher = PhotoFetcher(self._options.photo_uris, max_bytes=PHOTO_LIMITS.max_bytes)
        if self._options.outcomes:
            from serving.outcomes.writer import Recorder  # pyarrow and fsspec, only where it is asked for

            self._recorder = await asyncio.to_thread(Recorder, self._options.outcomes)
        self._gateway = Gateway(
            self._router,
            admission=Admission(ThroughputEstimator(saturation_photos=4 * self._options.num_decoders)),
            recorder=self._recorder,
            photo_fetcher=self._photo_fetcher,
            quotas=PhotoQuota(quota / self._options.workers) if (quota := self._options.quota_photos_per_s) else None,
        )
        interceptors: list[grpc.aio.ServerInterceptor] = [EarlyRejectionInterceptor(self._gateway)]
        if verifiers := self._options.create_token_verifiers():
            interceptors.insert(0, AuthInterceptor(*verifiers))
        if self._options.traces:
            from serving.observability.grpc_tracing import (
                TracingInterceptor,  # opentelemetry, only where it is asked for
            )

            interceptors.insert(0, TracingInterceptor(SERVICE_NAME))
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                # Clients may keep connections alive every 10 s; the default answers with too_many_pings.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                # A photo comes when it is read, a round trip later: of calls that are refused unread it never comes.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.so_reuseport", int(self._options.reuse_port)),
                *self._options.connection_age_options,
            ],
            # A second wall, without a reason or a delay: calls that are only beginning hold memory too.
            maximum_concurrent_rpcs=4 * MAX_PHOTOS_IN_FLIGHT,
        )
        pb_grpc.add_ListingVisionServiceServicer_to_server(self._gateway, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._publish_health()
        address = f"{self._options.host}:{self._options.port}"
        try:
            if tls := self._options.tls:
                self.port = self._server.add_secure_port(address, tls.create_credentials())
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; choose another --port") from error
        if self._options.runtime_folder:
            self._server.add_insecure_port(gateway_socket_address(self._options.runtime_folder, os.getpid()))
        await self._server.start()

    async def _close(self) -> None:
        if self._gateway:
            await self._gateway.shadow_traffic.close()
        if self._photo_fetcher:
            await self._photo_fetcher.close()
        if self._recorder:
            await asyncio.to_thread(self._recorder.close)
        await self._router.close()

    def _on_release_change(self, release: ServedRelease) -> None:
        """Health and metrics are those of the release that answers most."""
        if not self._router.is_stable(release):
            return
        SERVING.set(int(release.is_healthy))
        BREAKER_OPEN.set(int(release.breaker.is_open))
        task = asyncio.get_running_loop().create_task(self._publish_health())
        self._health_tasks.add(task)
        task.add_done_callback(self._health_tasks.discard)

    async def _publish_health(self) -> None:
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if self._router.stable.is_healthy else state.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)
