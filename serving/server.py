"""One gateway process: engine, decoders, gRPC server, health that follows the model, a shutdown that loses no call."""

import asyncio
import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving import answers
from serving.admission import MAX_PHOTOS_IN_FLIGHT, Admission, DrainRate
from serving.breaker import Breaker
from serving.client import MESSAGE_LIMIT_BYTES
from serving.decoding import DecoderPool, DecoderThreads
from serving.engines import AsyncEngine, InProcessEngine, TritonEngine, check
from serving.gateway import SERVICE_NAME, Gateway, RefuseUnread
from serving.metrics import SERVING
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.security import Authenticate, Quotas, ServerTls, StaticTokens, TokenVerifier, is_loopback
from serving.tracing import TraceOptions
from serving.triton_repository import MODEL_NAME, RepositoryOptions, read_tuning
from vision.bundle import UNKNOWN_BACKEND, load_bundle
from vision.cores import usable_cores
from vision.errors import EngineBusy, EngineError, EngineUnavailable, ListingVisionError

if TYPE_CHECKING:
    from serving.outcomes.writer import Recorder
    from serving.photo_uris import PhotoUris

__all__ = ["CHECK_AGAIN_S", "GOLDEN_TIMEOUT_S", "ONE_PHOTO", "GatewayServer", "ServeOptions", "local_address"]

_log = logging.getLogger(__name__)

FAILURES_UNTIL_NOT_SERVING = 2
"""Golden-photo checks in a row; one alone may have met a moment of load."""
GOLDEN_TIMEOUT_S = 5.0
"""A model that takes longer for a photo has stopped: with every copy at the slowest listing it may still decode, and
one more such photo each, an answer takes 4.5 s (`serving.decode_client`)."""
ONE_PHOTO = slice(0, 1)
"""Of the golden photos: what is asked again and again should cost little."""
CHECK_AGAIN_S = 0.25
"""Between checks while they fail: callers are refused until one succeeds."""


_PATHS = ("bundle", "tuning", "local_folder", "tls_certificate", "tls_key", "tls_client_ca", "tokens")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    bundle: Path
    host: str = "127.0.0.1"
    port: int = 50051
    """0 takes a free one."""
    triton: str | None = None
    """HOST:PORT of a Triton that serves the bundle."""
    model_name: str = MODEL_NAME
    """Triton's name for it."""
    in_process: bool = False
    """ONNX Runtime in this process instead of Triton."""
    workers: int = 1
    """Gateway processes on the port, each with its share of the decoders."""
    share_port: bool = False
    """Other processes of the same tree listen on the port too."""
    isolate: bool = True
    """Decode in processes that a photo may crash; else on threads of the gateway, or in the model's own process."""
    decode_in: Literal["triton", "gateway"] = "triton"
    """Where photos are decoded if Triton's model can do it; one that cannot, as on a GPU, is sent pixels."""
    tuning: Path | None = None
    """What `serve tune` found best, for a Triton that is started here; None: what is best on most CPUs."""
    grace_s: float = 15.0
    """How long calls in flight may take to finish after SIGTERM."""
    drain_s: float = 0.5
    """How long to go on serving after health says NOT_SERVING, for load balancers to notice.

    Not 0: grpc.aio cancels calls that have arrived but not begun when it is told to stop.
    """
    health_interval_s: float = 1.0
    """Between two golden-photo checks."""
    connection_age_s: float | None = None
    """How long a caller's connection may last; calls on it finish, the next ones take a new one. None: for ever."""
    status_port: int | None = None
    """Of the supervisor's HTTP: metrics, /healthz, /readyz; 0 takes a free one, None: there is none."""
    http_port: int | None = None
    """Of HTTP/JSON and the page for people; 0 takes a free one, None: there is none."""
    photo_uris: tuple[str, ...] = ()
    """Prefixes below which photos may be fetched; empty: none are."""
    outcomes: str | None = None
    """Folder or fsspec URL for what was suggested and chosen; None: it is not recorded."""
    local_folder: Path | None = None
    """Where each gateway process also listens for its supervisor, on a socket named by its pid; None: nowhere."""
    tls_certificate: Path | None = None
    """PEM, with `tls_key`; None: plain text."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Whose certificates callers must show; None: none."""
    tokens: Path | None = None
    """Callers and hashes of their bearer tokens (`serving.security.StaticTokens`); with no `jwks` and None: anybody may
    call."""
    jwks: str | None = None
    """URL or path of the keys of signed bearer tokens (`serving.jwt_tokens`), with `jwt_audience` and `jwt_issuer`."""
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    quota_photos_per_s: float | None = None
    """Of each caller, over all gateway processes together; None: no quota."""
    insecure: bool = False
    """Whether plain text may be spoken beyond this machine."""
    otlp_endpoint: str | None = None
    """Where spans go, of the gateway and of a Triton that is started here (`serving.tracing`); None: no traces."""
    trace_ratio: float = 1.0
    """Share of the calls that are traced, where the caller has not decided."""

    @property
    def tls(self) -> ServerTls | None:
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTls(certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def traces(self) -> TraceOptions | None:
        """Raises ListingVisionError: a value is wrong."""
        return TraceOptions(endpoint=self.otlp_endpoint, ratio=self.trace_ratio) if self.otlp_endpoint else None

    def token_verifiers(self) -> list[TokenVerifier]:
        """Who tell callers by their tokens; none: anybody may call.

        Raises:
            ListingVisionError: tokens or keys cannot be used.
        """
        verifiers: list[TokenVerifier] = [StaticTokens(self.tokens)] if self.tokens else []
        if self.jwks and self.jwt_audience and self.jwt_issuer:
            from serving.jwt_tokens import JwtTokens, JwtTrust  # cryptography, only where it is asked for

            kept = self.local_folder / "jwks.json" if self.local_folder else None
            trust = JwtTrust(jwks=self.jwks, audience=self.jwt_audience, issuer=self.jwt_issuer, kept=kept)
            verifiers.append(JwtTokens(trust))
        return verifiers

    def refuse_plain_text_beyond_loopback(self) -> None:
        """Raise ListingVisionError where photos and tokens would go over a network for all to read."""
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise ListingVisionError(
                f"refusing to listen on {self.host} in plain text: give --tls-certificate and --tls-key, or --insecure "
                "where something in front speaks TLS"
            )

    @property
    def connection_age(self) -> list[tuple[str, int]]:
        """Of the gRPC server: a load balancer in front can give a connection another place only when it is made."""
        return (
            [] if self.connection_age_s is None else [("grpc.max_connection_age_ms", int(1e3 * self.connection_age_s))]
        )

    @property
    def num_decoders(self) -> int:
        """Decoding processes of one gateway process: together as many as cores."""
        return max(1, usable_cores() // self.workers)

    @property
    def repository_options(self) -> RepositoryOptions:
        """How a Triton that is started here serves the model."""
        options = read_tuning(self.tuning) if self.tuning else RepositoryOptions(backend="python")
        return replace(options, isolate=self.isolate)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "ServeOptions":
        raw = json.loads(text)
        paths = {name: Path(raw[name]) for name in _PATHS if raw[name] is not None}
        return cls(**{**raw, **paths, "photo_uris": tuple(raw["photo_uris"])})


def local_address(folder: Path, pid: int) -> str:
    """Where a gateway process listens for its supervisor."""
    return f"unix:{folder}/{pid}.sock"


class GatewayServer:
    """Start it, serve, stop it. Asks the Triton at `options.triton`, or ONNX Runtime in this process."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._bundle = load_bundle(options.bundle)
        self._health = health.aio.HealthServicer()
        self._engine: AsyncEngine | None = None
        decoders = DecoderPool if options.isolate else DecoderThreads
        self._decoders = decoders(self._bundle.info.preprocessing, options.num_decoders)
        self._recorder: Recorder | None = None
        self._photo_uris: PhotoUris | None = None
        self._breaker = Breaker()
        self._backend = UNKNOWN_BACKEND
        self._watch: asyncio.Task[None] | None = None
        self._failures = 0
        self._serving = False
        self._checked_while_open = False
        self._last_error: EngineError | None = None
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
            self._engine = (
                TritonEngine(
                    self._options.triton,
                    model_name=self._options.model_name,
                    num_gateways=self._options.workers,
                    may_decode=self._options.decode_in == "triton",
                )
                if self._options.triton
                else InProcessEngine(self._bundle)
            )
            await self._start_server()
        except BaseException:
            await self._close()
            raise
        self._watch = asyncio.create_task(self._watch_engine())

    async def stop(self) -> None:
        """NOT_SERVING first, then calls in flight, then the engine."""
        try:
            await self._health.enter_graceful_shutdown()
            if self._watch:
                self._watch.cancel()
            await asyncio.sleep(self._options.drain_s)
            self._gateway.streams.close()
            await self._server.stop(self._options.grace_s)
        finally:
            await self._close()

    async def _start_server(self) -> None:
        assert self._engine is not None
        if self._options.photo_uris:
            from serving.photo_uris import PhotoUris  # aiohttp, only where it is asked for

            self._photo_uris = PhotoUris(self._options.photo_uris, max_bytes=answers.PREPARE_LIMITS.max_bytes)
        if self._options.outcomes:
            from serving.outcomes.writer import Recorder  # pyarrow and fsspec, only where it is asked for

            self._recorder = await asyncio.to_thread(Recorder, self._options.outcomes)
        self._gateway = Gateway(
            # Nothing is filled in before it is known what answers.
            self._bundle.on_backend(UNKNOWN_BACKEND),
            self._engine,
            prepare=self._decoders.prepare,
            admission=Admission(DrainRate(busy_photos=4 * self._options.num_decoders)),
            breaker=self._breaker,
            recorder=self._recorder,
            photo_uris=self._photo_uris,
            quotas=Quotas(quota / self._options.workers) if (quota := self._options.quota_photos_per_s) else None,
        )
        interceptors: list[grpc.aio.ServerInterceptor] = [RefuseUnread(self._gateway)]
        if verifiers := self._options.token_verifiers():
            interceptors.insert(0, Authenticate(*verifiers))
        if self._options.traces:
            from serving.traced_calls import TraceCalls  # opentelemetry, only where it is asked for

            interceptors.insert(0, TraceCalls(SERVICE_NAME))
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                # Clients may keep connections alive every 10 s; the default answers with too_many_pings.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                # A photo comes when it is read, a round trip later: of calls that are refused unread it never comes.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.so_reuseport", int(self._options.share_port)),
                *self._options.connection_age,
            ],
            # A second wall, without a reason or a delay: calls that are only beginning hold memory too.
            maximum_concurrent_rpcs=4 * MAX_PHOTOS_IN_FLIGHT,
        )
        pb_grpc.add_ListingVisionServiceServicer_to_server(self._gateway, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._set_serving(False)
        address = f"{self._options.host}:{self._options.port}"
        try:
            if tls := self._options.tls:
                self.port = self._server.add_secure_port(address, tls.credentials())
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; choose another --port") from error
        if self._options.local_folder:
            self._server.add_insecure_port(local_address(self._options.local_folder, os.getpid()))
        await self._check_once()
        if not self._serving and self._options.triton is None:
            raise EngineUnavailable(f"the model does not answer its golden photos: {self._last_error}")
        answers.warm_up(self._bundle)
        if self._engine.infer_encoded is None:
            await self._decoders.start()
        await self._server.start()

    async def _close(self) -> None:
        await self._decoders.close()
        if self._photo_uris:
            await self._photo_uris.close()
        if self._recorder:
            await asyncio.to_thread(self._recorder.close)
        if self._engine:
            await self._engine.close()

    async def _watch_engine(self) -> None:
        while True:
            await self._until_next_check()
            try:
                await self._check_once()
            # Whatever it was, a watch that ends would leave the last health standing for ever.
            except Exception:
                _log.exception("the health check itself failed")
                await self._set_serving(False)

    async def _until_next_check(self) -> None:
        # Once it has been looked at, an open breaker is no reason for haste: a model that is busy leaves it open.
        if self._failures or not self._serving or self._checked_while_open:
            await asyncio.sleep(CHECK_AGAIN_S)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.health_interval_s):
                await self._breaker.opened.wait()

    async def _check_once(self) -> None:
        assert self._engine is not None
        self._checked_while_open = self._breaker.is_open
        try:
            await check(self._engine, self._bundle, which=ONE_PHOTO, timeout_s=GOLDEN_TIMEOUT_S)
            # A Triton that comes back, or is told to load anew, may be another one.
            self._decide_for(await self._engine.backend())
        except EngineBusy:
            return  # it works, and has too much to do
        except EngineError as error:
            self._last_error = error
            self._failures += 1
            if self._failures >= FAILURES_UNTIL_NOT_SERVING and self._serving:
                _log.error("NOT_SERVING: %s", error)
                await self._set_serving(False)
                self._decide_for(UNKNOWN_BACKEND)  # what answers next may be another model
        else:
            self._failures = 0
            if not self._serving:
                _log.info("SERVING: the golden photos are answered as the exported model answered them")
            await self._set_serving(True)

    def _decide_for(self, backend: str) -> None:
        """Let promises hold only where they were made."""
        if backend == self._backend:
            return
        self._backend = backend
        self._gateway.bundle = bundle = self._bundle.on_backend(backend)
        if bundle is not self._bundle:
            made_with = self._bundle.calibration.certifies.get("backend")
            _log.warning("fields are suggested, never filled: promises were made with %s, not %s", made_with, backend)

    async def _set_serving(self, serving: bool) -> None:
        self._serving = serving
        SERVING.set(int(serving))
        if serving:
            self._breaker.close()
            self._checked_while_open = False
        else:
            self._breaker.open()
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if serving else state.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)
