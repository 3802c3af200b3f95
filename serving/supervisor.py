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

from serving.control import ControlServer, control_path
from serving.engines import InProcessEngine, TritonEngine, check, until_answering
from serving.http_api.supervised import HttpProcess
from serving.metrics import MetricsFolder
from serving.server import CHECK_AGAIN_S, GOLDEN_TIMEOUT_S, ONE_PHOTO, ServeOptions, local_address
from serving.status_server import Answer, StatusServer
from serving.tracing import require_packages
from serving.triton_install import find_triton
from serving.triton_repository import MODEL_NAME
from serving.triton_server import LocalTriton
from serving.worker import READY
from vision.bundle import Bundle, load_bundle
from vision.errors import EngineBusy, EngineError, EngineUnavailable, ListingVisionError, TritonNotInstalled

__all__ = ["Supervisor", "serve"]

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
FAILURES_UNTIL_RELOAD = 2
"""Golden-photo checks in a row until a Triton of our own has to load the model anew: new model processes …"""
FAILURES_UNTIL_RESTART = 4
"""… and until it is stopped and started."""
READY_TIMEOUT_S = 2.0
SERVING = "SERVING"
RELOAD_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
REPLACED_END_AFTER_S = 15.0
"""Longer than any call to Triton may take."""
RESTART_PAUSES_S = (0.0, 0.5, 2.0, 5.0)
"""Before a gateway process that has died is started again, by how many have died lately; the last one for all more."""
LATELY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class _Release:
    """A bundle that is loaded."""

    bundle: Bundle
    model_name: str
    """Triton's name for it; never used again for another."""
    engine: TritonEngine | None
    """None: gateway processes have the model themselves."""

    @property
    def label(self) -> str:
        return _label(self.bundle)


def _label(bundle: Bundle) -> str:
    """A release's name: weights and calibration."""
    return f"{bundle.info.model_version}.{bundle.calibration.version[:6]}"


@dataclass(eq=False)
class _Worker:
    process: asyncio.subprocess.Process
    stopping: bool = False


class Supervisor:
    """Start it, then let it run until it is asked to stop.

    A gateway process that dies is replaced. A Triton of its own that dies, or no longer answers the golden photos, is
    healed: by loading the model anew, else by starting it again.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._bundle = load_bundle(options.bundle)
        self._releases: list[_Release] = []
        self._current: _Release | None = None
        self._before: _Release | None = None
        """What answered before the last promotion."""
        self._num_loaded = 0
        self._releasing = asyncio.Lock()
        self._control: ControlServer | None = None
        self._options = options
        self._triton: LocalTriton | None = None
        self._engine: TritonEngine | None = None
        self._processes: dict[str, frozenset[int]] = {}
        """That compute each model, by Triton's name for it; one of them that ends is missed."""
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
            if not self._options.in_process and not self._options.triton:
                await self._start_triton()
            for _ in range(self._options.workers):
                await self._add_worker()
            if self._http:
                await self._http.start(self._options)
        except BaseException:
            await self.stop()
            raise
        self._current = _Release(bundle=self._bundle, model_name=self._options.model_name, engine=self._engine)
        self._releases.append(self._current)
        if self._triton:
            self._spawn(self._watch_triton())
        await self._start_control(port)

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
        for engine in {release.engine for release in self._releases} | {self._engine}:
            if engine:
                await engine.close()
        if self._triton:
            await asyncio.to_thread(self._triton.stop)
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
                except (OSError, TimeoutError) as error:
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

    async def load(self, bundle: str) -> str:
        """Load a bundle beside what serves and return its release's name; it answers nobody yet.

        Raises:
            ListingVisionError: it is not whole, is loaded already, or does not answer its golden photos.
        """
        async with self._releasing:
            loaded = await asyncio.to_thread(load_bundle, bundle)
            if self._options.triton and not self._triton:
                raise ListingVisionError(
                    f"the Triton at {self._options.triton} is not this service's own; load the model there and "
                    "start a gateway for it"
                )
            self._num_loaded += 1
            name = f"{MODEL_NAME}_{self._num_loaded + 1}"
            if any(_label(loaded) == other.label for other in self._releases):
                raise ListingVisionError(f"{_label(loaded)} is loaded already")
            release = _Release(bundle=loaded, model_name=name, engine=self._engine_of(name))
            try:
                await self._bring_up(release)
            except BaseException:
                await self._let_go(release)
                raise
            self._releases.append(release)
            _log.info("release %s is loaded", release.label)
            return release.label

    async def promote(self, release: str) -> None:
        """Have a loaded release answer: gateway processes are replaced one by one, and no call fails.

        Raises:
            ListingVisionError: it is not loaded, or does not answer its golden photos; what answered goes on.
        """
        async with self._releasing:
            chosen = self._named(release)
            await self._check_golden(chosen)
            options = self._options
            self._options = replace(options, bundle=chosen.bundle.folder, model_name=chosen.model_name)
            if not await self.restart_workers():
                self._options = options
                await self.restart_workers()
                raise ListingVisionError(f"{release} is not promoted: no gateway process came up for it; see the log")
            if chosen is not self._current:
                self._before, self._current = self._current, chosen
            # What is watched from here on.
            self._bundle, self._engine = chosen.bundle, chosen.engine
            _log.info("release %s answers", release)

    async def rollback(self) -> str:
        """Promote what answered before, and return its name.

        Raises:
            ListingVisionError: there is nothing to go back to.
        """
        if self._before is None:
            raise ListingVisionError("there is no release to go back to: none was promoted yet, or it is unloaded")
        label = self._before.label
        await self.promote(label)
        return label

    async def unload(self, release: str) -> None:
        """Let go of a release.

        Raises:
            ListingVisionError: it answers, or is not loaded.
        """
        async with self._releasing:
            chosen = self._named(release)
            if chosen is self._current:
                raise ListingVisionError(f"{release} answers; promote another one first")
            self._releases.remove(chosen)
            if chosen is self._before:
                self._before = None
            await self._let_go(chosen)
            _log.info("release %s is unloaded", release)

    async def status(self) -> list[dict[str, object]]:
        """All that is loaded."""
        return [
            {
                "release": release.label,
                "name": release.bundle.info.model_name,
                "bundle": str(release.bundle.folder),
                "answers": release is self._current,
                "before": release is self._before,
            }
            for release in self._releases
        ]

    async def _start_control(self, port: int) -> None:
        commands = (self.load, self.promote, self.rollback, self.unload, self.status)
        self._control = ControlServer(control_path(port), {command.__name__: command for command in commands})
        await self._control.start()

    def _named(self, label: str) -> _Release:
        for release in self._releases:
            if release.label == label:
                return release
        raise ListingVisionError(f"{label} is not loaded; loaded: {', '.join(r.label for r in self._releases)}")

    def _engine_of(self, model_name: str) -> TritonEngine | None:
        return TritonEngine(self._triton.address, model_name=model_name) if self._triton else None

    async def _bring_up(self, release: _Release) -> None:
        if self._triton:
            assert release.engine is not None
            await asyncio.to_thread(self._triton.add_model, release.bundle, release.model_name)
            await release.engine.load(timeout_s=LOAD_TIMEOUT_S)
            self._note_processes(release.model_name)
        await self._check_golden(release)

    async def _check_golden(self, release: _Release) -> None:
        if release.engine:
            await until_answering(release.engine, release.bundle)
            return
        engine = await asyncio.to_thread(InProcessEngine, release.bundle)
        try:
            await check(engine, release.bundle)
        finally:
            await engine.close()

    async def _let_go(self, release: _Release) -> None:
        if release.engine is None:
            return
        assert self._triton is not None
        # From here on nobody misses them.
        self._processes.pop(release.model_name, None)
        if release.model_name in self._triton.models:
            with contextlib.suppress(EngineUnavailable):
                await release.engine.unload(timeout_s=RELOAD_TIMEOUT_S)
            self._triton.remove_model(release.model_name)
        await release.engine.close()

    def _start_status(self) -> None:
        if self._options.status_port is None:
            return
        self._status = StatusServer(
            self._options.host,
            self._options.status_port,
            {
                "/metrics": lambda: Answer(200, prometheus_client.CONTENT_TYPE_LATEST, self._metrics.text()),
                "/healthz": lambda: Answer(200, "text/plain", b"alive\n"),
                "/readyz": self._readiness,
            },
        )
        _log.info("metrics and health at http://%s:%d", self._options.host, self._status.port)

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
        self._triton = LocalTriton(
            self._bundle, installation, self._options.repository_options, traces=self._options.traces
        )
        self._triton.start()
        self._engine = TritonEngine(self._triton.address)
        try:
            await asyncio.to_thread(self._triton.wait_until_listening)
            await until_answering(self._engine, self._bundle)
        except EngineUnavailable as error:
            await self._engine.close()
            await asyncio.to_thread(self._triton.stop)
            self._engine = self._triton = None
            self._answer_in_process(f"it did not start: {error}")
            return
        self._options = replace(self._options, triton=self._triton.address)
        self._note_processes(self._options.model_name)
        _log.info("Triton (pid %s) answers at %s", self._triton.pid, self._triton.address)

    def _answer_in_process(self, why: str) -> None:
        _log.warning("answering from ONNX Runtime in this process instead of Triton: %s", why)
        self._options = replace(self._options, in_process=True)

    async def _add_worker(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.worker", self._options.to_json(), str(theirs.fileno()),
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
            except (OSError, TimeoutError) as error:
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

    async def _watch_triton(self) -> None:
        assert self._triton is not None
        num_failures = 0
        while True:
            await asyncio.sleep(CHECK_AGAIN_S if num_failures else self._options.health_interval_s)
            try:
                # A golden photo seldom meets a model process that has died: it holds each call for a second.
                for release in list(self._releases):
                    missed = self._processes.get(release.model_name, frozenset())
                    if self._triton.is_running() and missed - self._triton.model_processes(release.model_name):
                        await self._reload_model(release, "one of its processes has died")
                num_failures = 0 if await self._is_well() else num_failures + 1
                if num_failures and not self._triton.is_running():
                    await self._restart_triton("it has died")
                    num_failures = 0
                elif num_failures == FAILURES_UNTIL_RELOAD:
                    assert self._current is not None
                    await self._reload_model(self._current, "it does not answer the golden photos")
                elif num_failures >= FAILURES_UNTIL_RESTART:
                    await self._restart_triton("it does not answer the golden photos")
                    num_failures = 0
            # Whatever it was, a watch that ends would leave a dead model dead.
            except Exception:
                _log.exception("watching Triton failed")

    async def _is_well(self) -> bool:
        """Whether all instances of the model answer."""
        assert self._triton is not None
        assert self._engine is not None
        checks = (
            check(self._engine, self._bundle, which=ONE_PHOTO, timeout_s=GOLDEN_TIMEOUT_S)
            for _ in range(self._triton.options.num_instances)
        )
        found = await asyncio.gather(*checks, return_exceptions=True)
        wrong = [error for error in found if error is not None and not isinstance(error, EngineBusy)]
        for error in wrong:
            if not isinstance(error, EngineError):
                raise error
        if wrong:
            _log.warning("Triton is not well: %s", wrong[0])
        return not wrong

    async def _reload_model(self, release: _Release, why: str) -> None:
        assert self._triton is not None
        assert release.engine is not None
        _log.error("Triton loads the model anew: %s", why)
        self._restarts.labels("model").inc()
        before = self._triton.model_processes(release.model_name)
        self._triton.touch_model(release.model_name)
        try:
            await release.engine.load(timeout_s=RELOAD_TIMEOUT_S)
        except EngineUnavailable as error:
            _log.warning("%s", error)
            return
        started = self._triton.model_processes(release.model_name) - before
        if started:
            self._processes[release.model_name] = started
            self._spawn(self._end_model_processes(before))
        else:
            _log.warning("Triton has started no new process for %s", release.model_name)
            self._note_processes(release.model_name)

    def _note_processes(self, model_name: str) -> None:
        assert self._triton is not None
        self._processes[model_name] = self._triton.model_processes(model_name)

    async def _end_model_processes(self, pids: frozenset[int]) -> None:
        """Those of a model that was replaced: where one has died, Triton waits for it and never ends the others."""
        assert self._triton is not None
        await asyncio.sleep(REPLACED_END_AFTER_S)
        for pid in pids & self._triton.all_model_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _restart_triton(self, why: str) -> None:
        assert self._triton is not None
        _log.error("Triton is started again: %s", why)
        self._restarts.labels("triton").inc()
        self._processes.clear()
        await asyncio.to_thread(self._triton.restart)
        with contextlib.suppress(EngineUnavailable):  # then the next checks fail, and it is started once more
            await asyncio.to_thread(self._triton.wait_until_listening)
            assert self._engine is not None
            await until_answering(self._engine, self._bundle)
            for release in self._releases:
                self._note_processes(release.model_name)
            _log.info("Triton (pid %s) answers at %s", self._triton.pid, self._triton.address)

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
