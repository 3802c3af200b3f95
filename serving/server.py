"""One gateway process: engine, gRPC server, health that follows the model, and a shutdown that loses no call."""

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.client import MESSAGE_LIMIT_BYTES
from serving.engines import AsyncEngine, InProcessEngine, TritonEngine, check
from serving.gateway import SERVICE_NAME, Gateway
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.triton_install import find_triton
from serving.triton_server import LocalTriton
from vision.bundle import UNKNOWN_BACKEND, Bundle, load_bundle
from vision.errors import EngineBroken, EngineBusy, EngineError, EngineUnavailable, TritonNotInstalled

__all__ = ["GatewayServer", "ServeOptions", "serve"]

_log = logging.getLogger(__name__)

FAILURES_UNTIL_NOT_SERVING = 2
"""Golden-photo checks in a row; one alone may have met a moment of load."""
FAILURES_UNTIL_RESTART = 5
"""After so many, a Triton of our own is stopped and started: a killed stub is never replaced (server#8604)."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    bundle: Path
    host: str = "127.0.0.1"
    port: int = 50051
    """0 takes a free one."""
    triton: str | None = None
    """HOST:PORT of a Triton that serves the bundle; None starts one here."""
    in_process: bool = False
    """ONNX Runtime in this process instead of Triton."""
    grace_s: float = 15.0
    """How long calls in flight may take to finish after SIGTERM."""
    drain_s: float = 0.5
    """How long to go on serving after health says NOT_SERVING, for load balancers to notice.

    Not 0: grpc.aio cancels calls that have arrived but not begun when it is told to stop.
    """
    health_interval_s: float = 1.0
    """Between two golden-photo checks."""


class GatewayServer:
    """Start it, await `wait_until_asked_to_stop`, stop it."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._bundle = load_bundle(options.bundle)
        self._local_triton: LocalTriton | None = None
        self._health = health.aio.HealthServicer()
        self._engine: AsyncEngine | None = None
        self._watch: asyncio.Task[None] | None = None
        self._failures = 0
        self._serving = False
        self._last_error: EngineError | None = None
        self.port = 0

    @property
    def local_triton(self) -> LocalTriton | None:
        return self._local_triton

    async def start(self) -> None:
        """Start the engine, bind, and return once the golden photos are answered rightly.

        With a Triton elsewhere (`options.triton`) it returns after one check, whatever that says; health then follows.

        Raises:
            EngineError: the engine that this process started does not answer, or not rightly.
            OSError: the port is taken.
        """
        try:
            self._engine = await self._start_engine()
            await self._start_server()
        except BaseException:
            await self._close_engine()
            raise
        self._watch = asyncio.create_task(self._watch_engine())

    async def _start_server(self) -> None:
        assert self._engine is not None
        self._backend = UNKNOWN_BACKEND
        # Nothing is filled in before it is known what answers.
        self._gateway = Gateway(self._bundle.on_backend(UNKNOWN_BACKEND), self._engine)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                # Clients may keep connections alive every 10 s; the default answers with too_many_pings.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.so_reuseport", 0),
            ]
        )
        pb_grpc.add_ListingVisionServiceServicer_to_server(self._gateway, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._set_serving(False)
        address = f"{self._options.host}:{self._options.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; choose another --port") from error
        await self._check_once()
        if not self._serving and self._options.triton is None:
            raise EngineUnavailable(f"the model does not answer its golden photos: {self._last_error}")
        await self._server.start()

    async def stop(self) -> None:
        """NOT_SERVING first, then calls in flight, then the engine."""
        try:
            await self._health.enter_graceful_shutdown()
            if self._watch:
                self._watch.cancel()
            await asyncio.sleep(self._options.drain_s)
            await self._server.stop(self._options.grace_s)
            self._gateway.close()
        finally:
            await self._close_engine()

    async def _close_engine(self) -> None:
        try:
            if self._engine:
                await self._engine.close()
        finally:
            if self._local_triton:
                await asyncio.to_thread(self._local_triton.stop)
                self._local_triton = None

    async def _start_engine(self) -> AsyncEngine:
        if self._options.in_process:
            return InProcessEngine(self._bundle)
        if self._options.triton:
            return TritonEngine(self._options.triton)
        try:
            installation = find_triton()
        except TritonNotInstalled as error:
            _log.warning("answering from ONNX Runtime in this process instead of Triton: %s", error)
            return InProcessEngine(self._bundle)
        self._local_triton = LocalTriton(self._bundle, installation)
        self._local_triton.start()
        engine = TritonEngine(self._local_triton.address)
        try:
            await asyncio.to_thread(self._local_triton.wait_until_listening)
            await _until_answering(engine, self._bundle)
        except EngineUnavailable as error:
            await engine.close()
            await self._close_engine()
            _log.warning(
                "answering from ONNX Runtime in this process instead of Triton, which did not start: %s", error
            )
            return InProcessEngine(self._bundle)
        except BaseException:
            await engine.close()
            raise
        _log.info("Triton (pid %s) answers at %s", self._local_triton.pid, self._local_triton.address)
        return engine

    async def _watch_engine(self) -> None:
        while True:
            await asyncio.sleep(self._options.health_interval_s)
            try:
                await self._check_once()
                await self._heal()
            # Whatever it was, a watch that ends would leave the last health standing for ever.
            except Exception:
                _log.exception("the health check itself failed")
                await self._set_serving(False)

    async def _heal(self) -> None:
        """Start a Triton of our own again once it has died, or has failed every check for a while."""
        if not self._local_triton or (self._local_triton.is_running() and self._failures < FAILURES_UNTIL_RESTART):
            return
        _log.error("NOT_SERVING: Triton is started again")
        await self._set_serving(False)
        self._failures = FAILURES_UNTIL_NOT_SERVING
        await asyncio.to_thread(self._local_triton.restart)
        with contextlib.suppress(EngineUnavailable):  # then the next checks fail, and it is started once more
            await asyncio.to_thread(self._local_triton.wait_until_listening)

    async def _check_once(self) -> None:
        assert self._engine is not None
        try:
            await check(self._engine, self._bundle)
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
                # Callers who do not look at health are still answered, by what may be another model.
                self._decide_for(UNKNOWN_BACKEND)
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
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if serving else state.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


async def _until_answering(engine: AsyncEngine, bundle: Bundle, timeout_s: float = 60) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await check(engine, bundle)
                except EngineBroken:
                    raise
                except (EngineUnavailable, EngineBusy):
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise EngineUnavailable(f"Triton did not answer the golden photos within {timeout_s:g} s") from None


async def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then shut down cleanly."""
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    server = GatewayServer(options)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop_asked.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        _log.info("stopping before it has started")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    await starting
    _log.info("listening on %s:%d (pid %d)", options.host, server.port, os.getpid())
    await stop_asked.wait()
    _log.info("stopping: health is NOT_SERVING, calls in flight are finished")
    await server.stop()
    _log.info("stopped")
