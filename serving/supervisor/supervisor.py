"""The tree of processes behind one port: gateways, and a Triton of our own; what dies is started again."""

import asyncio
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import replace

import grpc
import prometheus_client
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.config import (
    CANARY_MODEL_NAME,
    SHADOW_MODEL_NAME,
    ServeOptions,
    local_address,
)
from serving.errors import TritonNotInstalled
from serving.http_api.taxonomies import note_routes
from serving.observability.admin_http import Answer, StatusServer
from serving.observability.metrics import MetricsFolder
from serving.observability.tracing import require_packages
from serving.processes.control import ControlServer, control_path
from serving.rollout.manager import Releases
from serving.rollout.router import only_route
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseAt, Routes, Share
from serving.supervisor.gateway_pool import GatewayProcesses
from serving.supervisor.http_process import HttpProcess
from serving.triton.install import find_triton
from serving.triton.process import LocalTriton
from serving.triton.watchdog import WatchedTriton
from vision.bundle import load_bundle
from vision.errors import EngineUnavailable, ListingVisionError

__all__ = ["Supervisor", "serve"]

_log = logging.getLogger(__name__)

READY_TIMEOUT_S = 2.0
SERVING = "SERVING"


class Supervisor:
    """Start it, then let it run until it is asked to stop.

    A gateway process that dies or falls silent is replaced (`serving.supervisor.gateway_pool`). A Triton of its own is
    healed (`serving.triton.watchdog`). A canary that any gateway process finds unwell is removed.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._bundle = load_bundle(options.bundle)
        self._releases: Releases | None = None
        self._control: ControlServer | None = None
        self._options = options
        self._triton: WatchedTriton | None = None
        self._gateways: GatewayProcesses | None = None
        self._removing = False
        """Whether a canary is being removed."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarting = asyncio.Lock()
        self._port_holder: socket.socket | None = None
        options.refuse_plain_text_beyond_loopback()
        if options.traces:
            require_packages()  # as each gateway process would
        if options.tls:
            options.tls.credentials()  # raises what each gateway process would
        self._metrics = MetricsFolder()
        self._options = replace(options, local_folder=self._metrics.path)
        try:
            self._options.token_verifiers()
        except ListingVisionError:
            self._metrics.remove()
            raise
        self._restarts = prometheus_client.Counter(
            "listing_vision_restarts",
            "What died or was unwell and was started again: gateway, http, triton, or the model in it.",
            ["what"],
            registry=self._metrics.registry,
        )
        self._canaries_removed = prometheus_client.Counter(
            "listing_vision_canaries_removed",
            "Canaries that were not well and were removed.",
            registry=self._metrics.registry,
        )
        prometheus_client.Gauge(
            "listing_vision_gateway_wanted", "Gateway processes that should serve.", registry=self._metrics.registry
        ).set(options.workers)
        if options.photo_uris:
            _require("--photo-uris", "photo-uris", "aiohttp")
            _refuse_wrong_prefixes(options.photo_uris)
        if options.outcomes:
            _require("--outcomes", "outcomes", "fsspec", "pyarrow")
        self._status: StatusServer | None = None
        self._http: HttpProcess | None = None
        if options.http_port is not None:
            _require("--http-port", "http", "starlette", "uvicorn", "python_multipart")
            self._http = HttpProcess(died=lambda: self._restarts.labels("http").inc())

    async def start(self) -> None:
        """Return once all gateway processes serve.

        Raises:
            EngineError: a model of our own does not answer rightly.
            OSError: the port is taken, or a gateway process did not come up; its log says why.
        """
        try:
            self._start_status()
            self._port_holder, port = _hold_port(self._options.host, self._options.port)
            self._options = replace(self._options, port=port, share_port=True)
            is_loadable = self._options.triton is None
            if not self._options.in_process and not self._options.triton:
                await self._start_triton()
            routes = await self._first_routes()
            self._options = replace(self._options, routes=routes)
            note_routes(self._metrics.path, routes)
            self._gateways = GatewayProcesses(
                self._options, self._metrics, restarts=self._restarts, unwell=self._heard_of_unwell
            )
            await self._gateways.start()
            if self._http:
                await self._http.start(self._options)
            self._releases = Releases(
                routes,
                self._route,
                triton=self._triton,
                is_loadable=is_loadable,
                records=bool(self._options.outcomes),
            )
            await self._start_control(port)
        except BaseException:
            await self.stop()
            raise
        if self._triton:
            self._triton.watch()

    @property
    def address(self) -> str:
        return f"{self._options.host}:{self._options.port}"

    async def stop(self) -> None:
        """Gateways first, each after its calls in flight; then Triton."""
        if self._control:
            await self._control.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http:
            await self._http.stop()
        if self._gateways:
            await self._gateways.stop()
        if self._triton:
            await self._triton.stop()
        if self._port_holder:
            self._port_holder.close()
        if self._status:
            self._status.close()
        self._metrics.remove()

    def restart_workers_soon(self) -> None:
        """Replace the gateway processes one by one, and then the HTTP process; for a signal handler."""

        async def restart() -> None:
            assert self._gateways is not None
            async with self._restarting:
                if await self._gateways.replace_all() and self._http:
                    await self._http.replace(self._gateways.options)

        self._spawn(restart())

    async def _start_control(self, port: int) -> None:
        assert self._releases is not None
        found = self._releases
        commands = (
            found.load, found.promote, found.rollback, found.unload, found.status,
            found.canary_on, found.canary_off, found.shadow_on, found.shadow_off,
        )  # fmt: skip
        self._control = ControlServer(control_path(port), {command.__name__: command for command in commands})
        await self._control.start()

    async def _first_routes(self) -> Routes:
        """With canary and shadow, where they are given. Raises ListingVisionError: they cannot be loaded."""
        options = self._options
        routes = await asyncio.to_thread(only_route, options)
        for part, folder, name, share in (
            (CANARY, options.canary, CANARY_MODEL_NAME, options.canary_share),
            (SHADOW, options.shadow, SHADOW_MODEL_NAME, options.shadow_share),
        ):
            if folder is None:
                continue
            bundle = await asyncio.to_thread(load_bundle, folder)
            release = ReleaseAt(label=bundle.release, bundle=bundle.folder, model_name=name)
            routes = replace(routes, releases=(*routes.releases, release))
            routes = routes.with_share(part, Share(label=bundle.release, share=share))
            if self._triton:
                await self._triton.add(name, bundle)
        return routes

    async def _route(self, routes: Routes) -> None:
        """Have all gateway processes route so, and those that come.

        Raises:
            ListingVisionError: one of them does not; all route as before.
        """
        assert self._gateways is not None
        before = self._gateways.options.routes
        note_routes(self._metrics.path, routes)
        try:
            await self._gateways.route(routes)
        except BaseException:
            assert before is not None
            note_routes(self._metrics.path, before)
            raise

    def _heard_of_unwell(self, pid: int, unwell: Sequence[str]) -> None:
        canary = self._releases.canary if self._releases else None
        if canary is not None and canary in unwell and not self._removing:
            self._removing = True
            self._spawn(self._remove(canary, f"gateway process {pid} found it unwell"))

    async def _remove(self, canary: str, why: str) -> None:
        assert self._releases is not None
        try:
            if await self._releases.remove_canary(canary, why):
                self._canaries_removed.inc()
        except ListingVisionError as error:  # and the next who finds it unwell tries again
            _log.error("the canary %s could not be removed: %s", canary, error)
        finally:
            self._removing = False

    def _start_status(self) -> None:
        if self._options.status_port is None:
            return
        self._status = StatusServer(
            self._options.host,
            self._options.status_port,
            {
                "/metrics": lambda: Answer(200, prometheus_client.CONTENT_TYPE_LATEST, self._metrics_text()),
                "/healthz": lambda: Answer(200, "text/plain", b"alive\n"),
                "/readyz": self._readiness,
            },
        )
        _log.info("metrics and health at http://%s:%d", self._options.host, self._status.port)

    def _metrics_text(self) -> bytes:
        """Of the tree, and of its Triton where it answers: batch sizes and queues are seen nowhere else."""
        return self._metrics.text() + (self._triton.metrics_text() if self._triton else b"")

    def _readiness(self) -> Answer:
        """By the health that callers see: ready where any gateway process serves."""
        found = [self._health_of(pid) for pid in (self._gateways.pids if self._gateways else [])]
        if SERVING in found:
            return Answer(200, "text/plain", b"ready\n")
        return Answer(503, "text/plain", f"not ready: {', '.join(found) or 'no gateway process'}\n".encode())

    def _health_of(self, pid: int) -> str:
        """`SERVING`, another health, or the status of a call that failed."""
        try:
            with grpc.insecure_channel(local_address(self._metrics.path, pid)) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                found = health.Check(health_pb2.HealthCheckRequest(), timeout=READY_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))

    async def _start_triton(self) -> None:
        try:
            installation = find_triton()
        except TritonNotInstalled as error:
            self._answer_in_process(str(error))
            return
        local = LocalTriton(self._bundle, installation, self._options.repository_options, traces=self._options.traces)
        self._triton = WatchedTriton(
            local, self._bundle, health_interval_s=self._options.health_interval_s, restarts=self._restarts
        )
        try:
            await self._triton.start()
        except EngineUnavailable as error:
            await self._triton.stop()
            self._triton = None
            self._answer_in_process(f"it did not start: {error}")
            return
        self._options = replace(self._options, triton=self._triton.address)

    def _answer_in_process(self, why: str) -> None:
        _log.warning("answering from ONNX Runtime in this process instead of Triton: %s", why)
        self._options = replace(self._options, in_process=True)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _require(option: str, extra: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ListingVisionError(f"{option} needs {', '.join(missing)}: pip install 'listing-vision[{extra}]'")


def _refuse_wrong_prefixes(prefixes: Sequence[str]) -> None:
    from serving.gateway.photo_fetch import check_prefixes  # aiohttp, only where it is asked for

    check_prefixes(prefixes)


def _hold_port(host: str, port: int) -> tuple[socket.socket, int]:
    """A bound socket that keeps the port ours while gateway processes come and go, and the port.

    Raises:
        OSError: somebody listens there already, and be it with SO_REUSEPORT.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    try:
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            port = alone.getsockname()[1]
        holder = socket.socket(family, kind, protocol)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address[0], port, *address[2:]))
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    return holder, port


async def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then shut down cleanly; SIGHUP replaces the gateway processes one by one."""
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    supervisor = Supervisor(options)
    starting = asyncio.create_task(supervisor.start())
    stopping = asyncio.create_task(stop_asked.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        _log.info("stopping before it has started")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    await starting
    loop.add_signal_handler(signal.SIGHUP, supervisor.restart_workers_soon)
    _log.info("listening on %s (pid %d, %d gateway processes)", supervisor.address, os.getpid(), options.workers)
    await stop_asked.wait()
    _log.info("stopping: health is NOT_SERVING, calls in flight are finished")
    await supervisor.stop()
    _log.info("stopped")
