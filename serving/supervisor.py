"""The tree of processes behind one port: gateways, and a Triton of our own; what dies is started again."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import prometheus_client
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.control import ControlServer, ask, control_path
from serving.http_api.supervised import HttpProcess
from serving.http_api.taxonomies import note_routes
from serving.metrics import MetricsFolder
from serving.releases import Releases
from serving.routes import CANARY, SHADOW, ReleaseAt, Routes, Share
from serving.routing import only_route
from serving.serve_options import (
    CANARY_MODEL_NAME,
    SHADOW_MODEL_NAME,
    ServeOptions,
    local_address,
    local_control,
)
from serving.status_server import Answer, StatusServer
from serving.tracing import require_packages
from serving.triton_install import find_triton
from serving.triton_server import LocalTriton
from serving.watched_triton import WatchedTriton
from serving.worker import READY
from vision.bundle import load_bundle
from vision.errors import EngineUnavailable, ListingVisionError, TritonNotInstalled

__all__ = ["Supervisor", "serve"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
READY_TIMEOUT_S = 2.0
SERVING = "SERVING"
ROUTE_TIMEOUT_S = 120.0
"""For a gateway process to bring up a release."""
UNWELL_TIMEOUT_S = 5.0
RESTART_PAUSES_S = (0.0, 0.5, 2.0, 5.0)
"""Before a gateway process that has died is started again, by how many have died lately; the last one for all more."""
LATELY_S = 60.0


@dataclass(eq=False)
class _Worker:
    process: asyncio.subprocess.Process
    stopping: bool = False


class Supervisor:
    """Start it, then let it run until it is asked to stop.

    A gateway process that dies is replaced. A Triton of its own is healed (`serving.watched_triton`). A canary that any
    gateway process finds unwell is removed.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._bundle = load_bundle(options.bundle)
        self._releases: Releases | None = None
        self._control: ControlServer | None = None
        self._options = options
        self._triton: WatchedTriton | None = None
        self._workers: set[_Worker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaths_s: list[float] = []
        self._stopping = False
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
            for _ in range(self._options.workers):
                await self._add_worker()
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
        self._spawn(self._watch_canary())

    @property
    def address(self) -> str:
        return f"{self._options.host}:{self._options.port}"

    async def stop(self) -> None:
        """Gateways first, each after its calls in flight; then Triton."""
        self._stopping = True
        if self._control:
            await self._control.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http:
            await self._http.stop()
        await asyncio.gather(*(self._end(worker) for worker in list(self._workers)))
        if self._triton:
            await self._triton.stop()
        if self._port_holder:
            self._port_holder.close()
        if self._status:
            self._status.close()
        self._metrics.remove()

    async def restart_workers(self) -> bool:
        """One after another: the new one serves before the old one is asked to stop.

        Where a new one does not come up, those that have not been replaced go on, and it is False.
        """
        async with self._restarting:
            for old in list(self._workers):
                if old not in self._workers:  # it has died, and been replaced for that
                    continue
                try:
                    await self._add_worker()
                except (OSError, TimeoutError, ListingVisionError) as error:
                    _log.error("gateway processes are not replaced: %s", error)
                    return False
                await self._end(old)
            if self._http:
                await self._http.replace(self._options)
        _log.info("all %d gateway processes were replaced", self._options.workers)
        return True

    def restart_workers_soon(self) -> None:
        """For a signal handler."""

        async def restart() -> None:
            await self.restart_workers()

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
        async with self._restarting:  # none comes up meanwhile by the old ones
            before = self._options
            stable = next(release for release in routes.releases if release.label == routes.stable)
            note_routes(self._metrics.path, routes)
            self._options = replace(before, routes=routes, bundle=stable.bundle, model_name=stable.model_name)
            answers = await self._told(routes)
            if failed := [error for error in answers if isinstance(error, BaseException)]:
                self._options = before
                assert before.routes is not None
                await self._told(before.routes)
                raise failed[0]

    async def _told(self, routes: Routes) -> list[BaseException | None]:
        return await asyncio.gather(
            *(self._tell(worker, routes) for worker in list(self._workers)), return_exceptions=True
        )

    async def _tell(self, worker: "_Worker", routes: Routes) -> None:
        try:
            await self._ask(worker, "route", ROUTE_TIMEOUT_S, routes=routes.to_dict())
        except ListingVisionError:
            if worker.process.returncode is None:
                raise  # else it has died, and another comes up by the new routes

    async def _ask(self, worker: "_Worker", command: str, timeout_s: float, **arguments: object) -> object:
        path = local_control(self._metrics.path, worker.process.pid)
        found: object = await asyncio.to_thread(ask, path, command, answer_timeout_s=timeout_s, **arguments)
        return found

    async def _watch_canary(self) -> None:
        assert self._releases is not None
        while True:
            await asyncio.sleep(self._options.health_interval_s)
            if (canary := self._releases.canary) is None:
                continue
            try:
                for worker in list(self._workers):
                    if canary in await self._unwell(worker):
                        why = f"gateway process {worker.process.pid} found it unwell"
                        if await self._releases.remove_canary(canary, why):
                            self._canaries_removed.inc()
                        break
            # Whatever it was, a watch that ends would leave an unwell canary for ever.
            except Exception:
                _log.exception("watching the canary failed")

    async def _unwell(self, worker: "_Worker") -> list[str]:
        try:
            found = await self._ask(worker, "unwell", UNWELL_TIMEOUT_S)
        except ListingVisionError:  # it dies, or is too busy to say
            return []
        assert isinstance(found, list)
        return found

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
        found = [self._health_of(worker.process.pid) for worker in list(self._workers)]
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

    async def _add_worker(self) -> None:
        options = self._options
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.worker", options.to_json(), str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).resolve().parent.parent,
                env=self._metrics.environment(),
                # A terminal's Ctrl-C reaches this process alone, which then stops the others in order.
                start_new_session=True,
            )  # fmt: skip
            worker = _Worker(process)
            theirs.close()
            ours.setblocking(False)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    answer = await asyncio.get_running_loop().sock_recv(ours, len(READY))
                if answer != READY:
                    raise OSError("a gateway process did not come up; see the log above")
                while options.routes != self._options.routes:  # they have changed meanwhile
                    options = self._options
                    assert options.routes is not None
                    await self._tell(worker, options.routes)
            except BaseException:
                await self._end(worker)
                raise
        self._workers.add(worker)
        self._spawn(self._watch_worker(worker))

    async def _watch_worker(self, worker: _Worker) -> None:
        status = await worker.process.wait()
        self._workers.discard(worker)
        self._metrics.forget(worker.process.pid)
        while not (self._stopping or worker.stopping):
            now_s = time.monotonic()
            self._deaths_s = [s for s in self._deaths_s if now_s - s < LATELY_S]
            pause_s = RESTART_PAUSES_S[min(len(self._deaths_s), len(RESTART_PAUSES_S) - 1)]
            self._deaths_s.append(now_s)
            _log.error("a gateway process ended with status %s; another is started in %g s", status, pause_s)
            self._restarts.labels("gateway").inc()
            await asyncio.sleep(pause_s)
            try:
                return await self._add_worker()
            except (OSError, TimeoutError, ListingVisionError) as error:
                _log.error("no new gateway process: %s", error)

    async def _end(self, worker: _Worker) -> None:
        worker.stopping = True
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
        try:
            async with asyncio.timeout(self._options.drain_s + self._options.grace_s + 15):
                await worker.process.wait()
        except TimeoutError:
            _log.warning("a gateway process did not end and is killed")
            worker.process.kill()
            await worker.process.wait()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _require(option: str, extra: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ListingVisionError(f"{option} needs {', '.join(missing)}: pip install 'listing-vision[{extra}]'")


def _refuse_wrong_prefixes(prefixes: Sequence[str]) -> None:
    from serving.photo_uris import check_prefixes  # aiohttp, only where it is asked for

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
