"""One gateway process: its releases, gRPC server, health that follows the model, a shutdown that loses no call."""

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.api.limits import MESSAGE_LIMIT_BYTES
from serving.auth.interceptor import AuthInterceptor
from serving.auth.quota import PhotoQuota
from serving.config import ServeOptions, create_suggestion_signer
from serving.decoding.pool import DecoderPool, DecoderThreads
from serving.decoding.prepared import PHOTO_LIMITS
from serving.gateway.admission import Admission, ThroughputEstimator
from serving.gateway.call_limits import CallLimits, CallLimitsInterceptor
from serving.gateway.early_rejection import SERVICE_NAME, EarlyRejectionInterceptor
from serving.gateway.service import Gateway
from serving.inference.engine import AsyncEngine
from serving.inference.health import GOLDEN_TIMEOUT_S
from serving.inference.in_process import InProcessEngine
from serving.inference.shared_check import SharedCheck
from serving.inference.triton import TritonEngine
from serving.observability.metrics import BREAKER_OPEN, FREE_DESCRIPTORS, GOLDEN_SUCCESS_S, SERVING
from serving.processes.sockets import format_address, gateway_socket_address
from serving.rollout.release import ServedRelease
from serving.rollout.router import Router, create_single_release_split
from serving.rollout.traffic_split import TrafficSplit
from vision.bundle import Bundle
from vision.errors import EngineUnavailable
from vision.images import Preprocessing
from vision.runtime.lifetime import count_free_descriptors

if TYPE_CHECKING:
    from serving.gateway.photo_fetch import PhotoFetcher
    from serving.outcomes.writer import Recorder

__all__ = ["GatewayServer", "list_connection_age_options"]

_log = logging.getLogger(__name__)

MAX_CONNECTION_STREAMS = 512
"""Calls that one connection may have open; a client keeps further ones back."""
MAX_CONNECTION_IDLE_MS = 300_000
"""A connection without calls is closed after this time; a client connects again when it needs to."""
MIN_PING_INTERVAL_MS = 10_000
"""Clients may send a keep-alive ping this often."""


class GatewayServer:
    """One gateway process: start, serve, stop. Infers with the Triton at `options.triton`, or with ONNX Runtime
    here."""

    def __init__(
        self, options: ServeOptions, *, admission: Admission | None = None, photo_fetcher: "PhotoFetcher | None" = None
    ) -> None:
        """Args:
        admission: None: sized by the number of decoders.
        photo_fetcher: None: created if the options name prefixes.
        """
        self._options = options
        self.admission = admission or Admission(ThroughputEstimator(saturation_photos=4 * options.num_decoders))
        self._health = health.aio.HealthServicer()
        self.router = Router(
            create_engine=self._create_engine,
            create_decoders=self._create_decoders,
            create_shared_check=self._create_shared_check,
            health_interval_s=options.health_interval_s,
            on_change=self._on_release_change,
            public_key=options.require_signature,
        )
        self._recorder: Recorder | None = None
        self._quotas: PhotoQuota | None = None
        self._photo_fetcher = photo_fetcher
        self.gateway: Gateway | None = None
        self._health_tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Check the golden photos, then listen.

        With ONNX Runtime in this process the check must pass; with a Triton the gateway starts either way, and its
        health follows.

        Raises:
            EngineError: the model in this process fails its golden photos.
            OSError: the port is taken.
        """
        try:
            traffic_split = self._options.traffic_split
            if traffic_split is None:
                traffic_split = await asyncio.to_thread(
                    create_single_release_split,
                    self._options.bundle,
                    model_name=self._options.model_name,
                    public_key=self._options.require_signature,
                )
            await self.router.apply(traffic_split)
            stable = self.router.stable
            if not stable.is_healthy and self._options.triton is None:
                raise EngineUnavailable(f"the model fails its golden photos: {stable.last_error}")
            await self._start_server()
        except BaseException:
            await self._close()
            raise

    async def apply_traffic_split(self, traffic_split: TrafficSplit) -> None:
        """Switch to a traffic split.

        Raises:
            ListingVisionError: a release cannot be loaded or is unhealthy; nothing has changed.
        """
        await self.router.apply(traffic_split)

    def list_unhealthy(self) -> list[str]:
        """Return the labels of active releases that have failed."""
        return self.router.list_unhealthy()

    async def stop(self) -> None:
        """Report NOT_SERVING, drain calls in flight, then close the engine."""
        try:
            assert self.gateway is not None
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(self._options.drain_s)
            self.gateway.streams.close()
            await self._server.stop(self._options.grace_period_s)
        finally:
            await self._close()

    async def _start_server(self) -> None:
        self.gateway = await self._create_gateway()
        self._server = grpc.aio.server(
            interceptors=self._create_interceptors(),
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                # The default, 5 minutes, answers a client that keeps a quiet stream alive with too_many_pings.
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
                # Photos arrive a round trip after the headers; of calls that are rejected early they never arrive.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.so_reuseport", int(self._options.reuse_port)),
                *list_connection_age_options(self._options.connection_age_s),
                ("grpc.max_concurrent_streams", MAX_CONNECTION_STREAMS),
                ("grpc.max_connection_idle_ms", MAX_CONNECTION_IDLE_MS),
            ],
        )
        pb_grpc.add_ListingVisionServiceServicer_to_server(self.gateway, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._publish_health()
        self._bind(self._server)
        await self._server.start()

    async def _create_gateway(self) -> Gateway:
        if self._options.photo_uris and self._photo_fetcher is None:
            from serving.gateway.photo_fetch import PhotoFetcher  # needs aiohttp

            self._photo_fetcher = PhotoFetcher(self._options.photo_uris, max_bytes=PHOTO_LIMITS.max_bytes)
        if self._options.outcomes:
            from serving.outcomes.writer import Recorder  # needs pyarrow and fsspec

            self._recorder = await asyncio.to_thread(
                Recorder, self._options.outcomes, retention_days=self._options.outcomes_days
            )
        if rate := self._options.quota_photos_per_s:
            folder = self._options.runtime_folder
            self._quotas = PhotoQuota(rate, folder / "quotas" if folder else None)
        return Gateway(
            self.router,
            admission=self.admission,
            recorder=self._recorder,
            photo_fetcher=self._photo_fetcher,
            signer=create_suggestion_signer(self._options),
            quotas=self._quotas,
        )

    def _create_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        interceptors: list[grpc.aio.ServerInterceptor] = [
            CallLimitsInterceptor(CallLimits()),
            EarlyRejectionInterceptor(self.router, self.admission),
        ]
        if verifiers := self._options.create_token_verifiers():
            interceptors.insert(0, AuthInterceptor(*verifiers))
        if self._options.traces:
            from serving.observability.grpc_tracing import TracingInterceptor  # needs opentelemetry

            interceptors.insert(0, TracingInterceptor(SERVICE_NAME))
        return interceptors

    def _bind(self, server: grpc.aio.Server) -> None:
        address = format_address(self._options.host, self._options.port)
        try:
            if tls := self._options.tls:
                self.port = server.add_secure_port(address, tls.create_credentials())
            else:
                self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; choose another --port") from error
        if self._options.runtime_folder:
            server.add_insecure_port(gateway_socket_address(self._options.runtime_folder, os.getpid()))

    async def _create_engine(self, bundle: Bundle, model_name: str) -> AsyncEngine:
        if self._options.triton is None:
            return await asyncio.to_thread(InProcessEngine, bundle)
        return TritonEngine(
            self._options.triton,
            model_name=model_name,
            num_gateways=self._options.workers,
            allow_decoding=self._options.decode_in == "triton",
            access=self._options.triton_access,
        )

    def _create_shared_check(self, model_name: str) -> SharedCheck | None:
        # Connections to an external Triton may end at different servers, and a model in this process is its own.
        folder = self._options.runtime_folder
        if folder is None or not self._options.owns_triton:
            return None
        return SharedCheck(folder / f"{model_name}.check", timeout_s=GOLDEN_TIMEOUT_S)

    def _create_decoders(self, preprocessing: Preprocessing) -> DecoderPool | DecoderThreads:
        kind = DecoderPool if self._options.isolate else DecoderThreads
        return kind(preprocessing, self._options.num_decoders)

    async def _close(self) -> None:
        if self.gateway:
            await self.gateway.shadow_traffic.close()
        if self._photo_fetcher:
            await self._photo_fetcher.close()
        if self._recorder:
            await asyncio.to_thread(self._recorder.close)
        if self._quotas:
            self._quotas.close()
        await self.router.close()

    def _on_release_change(self, release: ServedRelease) -> None:
        """Publish health and metrics of the stable release."""
        if not self.router.is_stable(release):
            return
        SERVING.set(int(release.is_healthy))
        FREE_DESCRIPTORS.set(count_free_descriptors())
        if release.is_healthy:
            GOLDEN_SUCCESS_S.set_to_current_time()
        BREAKER_OPEN.set(int(release.breaker.is_open))
        task = asyncio.get_running_loop().create_task(self._publish_health())
        self._health_tasks.add(task)
        task.add_done_callback(self._health_tasks.discard)

    async def _publish_health(self) -> None:
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if self.router.stable.is_healthy else state.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


def list_connection_age_options(age_s: float | None) -> list[tuple[str, int]]:
    """Return gRPC server options: a load balancer can move a client to another server only when it connects."""
    return [] if age_s is None else [("grpc.max_connection_age_ms", int(1e3 * age_s))]
