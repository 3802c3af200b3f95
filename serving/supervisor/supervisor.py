"""The parent of all processes behind one port: gateways, HTTP and Triton; what exits is started again."""

import asyncio
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace

from serving.api.suggestion_id import write_random_key
from serving.config import SUGGESTION_KEY_FILE, ServeOptions, create_suggestion_signer
from serving.errors import TritonNotInstalled
from serving.inference.triton import TritonEngine
from serving.observability.admin_http import HttpResponse, StatusServer
from serving.observability.metrics import MetricsFolder
from serving.observability.tracing import require_packages
from serving.processes.control import ControlServer
from serving.processes.sockets import format_address, reserve_port, supervisor_control_path
from serving.rollout.manager import ReleaseManager
from serving.rollout.routes_file import write_traffic_split
from serving.rollout.state_file import StateFolder
from serving.rollout.traffic_split import TrafficSplit
from serving.supervisor.gateway_pool import GatewayPool
from serving.supervisor.http_process import HttpProcess
from serving.supervisor.initial_releases import load_initial_releases
from serving.supervisor.status_pages import StatusPages
from serving.supervisor.supervisor_metrics import SupervisorMetrics
from serving.triton.install import find_triton
from serving.triton.patched_version import find_version_problem, is_reachable_by_others
from serving.triton.process import LocalTriton
from serving.triton.watchdog import TritonWatchdog
from vision.bundle import load_bundle
from vision.errors import EngineError, EngineUnavailable, ListingVisionError
from vision.runtime.progress import stop_heartbeat

__all__ = ["Supervisor", "serve"]

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs the processes of one `serve` from `start` to `stop`.

    A gateway process that exits or freezes is replaced (`serving.supervisor.gateway_pool`). The Triton that the
    supervisor starts is restarted when it is unhealthy (`serving.triton.watchdog`). A canary that any gateway process
    finds unhealthy is removed.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Raises ListingVisionError: an option cannot be met on this machine."""
        if options.require_signature:
            _require_installed("--require-signature", "signing", "model_signing")
        self._bundle = load_bundle(options.bundle, public_key=options.require_signature)
        self._releases: ReleaseManager | None = None
        self._state_folder: StateFolder | None = None
        self._control: ControlServer | None = None
        self._options = options
        self._triton: TritonWatchdog | None = None
        self._gateways: GatewayPool | None = None
        self._is_removing_canary = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._restart_lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._port_reservation: socket.socket | None = None
        options.require_tls_beyond_loopback()
        options.triton_access.check()
        if options.traces:
            require_packages()  # as each gateway process would
        if options.tls:
            options.tls.create_credentials()  # raises what each gateway process would
        self._metrics = MetricsFolder()
        self._options = replace(options, runtime_folder=self._metrics.path)
        try:
            write_random_key(self._metrics.path / SUGGESTION_KEY_FILE)
            create_suggestion_signer(self._options)
            self._options.create_token_verifiers()
        except ListingVisionError:
            self._metrics.remove()
            raise
        self._own_metrics = SupervisorMetrics(self._metrics.registry)
        self._own_metrics.gateway_processes_desired.set(options.workers)
        self._fallback_reason: str | None = None
        """Why there is no Triton where one was to be started."""
        if options.photo_uris:
            _require_installed("--photo-uris", "photo-uris", "aiohttp")
            _validate_prefixes(options.photo_uris)
        if options.outcomes:
            _require_installed("--outcomes", "outcomes", "fsspec", "pyarrow")
        self._status: StatusServer | None = None
        self._http: HttpProcess | None = None
        if options.http_port is not None:
            _require_installed("--http-port", "http", "starlette", "uvicorn")
            self._http = HttpProcess(on_exit=lambda: self._own_metrics.restarts.labels("http").inc())

    async def start(self) -> None:
        """Return once all gateway processes serve.

        Raises:
            EngineError: the model in a Triton that is started here fails its golden photos.
            OSError: the port is taken, or a gateway process did not start; its log says why.
        """
        try:
            self._loop = asyncio.get_running_loop()
            if self._options.state_folder:
                self._state_folder = StateFolder(self._options.state_folder)
            self._start_status()
            self._port_reservation, port = reserve_port(self._options.host, self._options.port)
            self._options = replace(self._options, port=port, reuse_port=True)
            can_load = self._options.triton is None
            if self._options.triton:
                if problem := await _find_triton_problem(self._options):
                    self._own_metrics.triton_unpatched.set(1)
                    _log.warning("%s", problem)
            elif not self._options.in_process:
                await self._start_triton()
            state = await load_initial_releases(self._options, self._triton, self._state_folder)
            self._options = replace(self._options, traffic_split=state.traffic_split)
            write_traffic_split(self._metrics.path, state.traffic_split)
            self._gateways = GatewayPool(
                self._options,
                self._metrics,
                restarts=self._own_metrics.restarts,
                on_unhealthy_releases=self._on_unhealthy_releases,
            )
            await self._gateways.start()
            if self._http:
                await self._http.start(self._options)
            self._releases = ReleaseManager(
                state,
                self._apply_traffic_split,
                triton=self._triton,
                can_load=can_load,
                is_recording=bool(self._options.outcomes),
                folder=self._state_folder.releases if self._state_folder else self._metrics.path / "releases",
                save=self._state_folder.write if self._state_folder else None,
                public_key=self._options.require_signature,
            )
            await self._start_control(port)
        except BaseException:
            await self.stop()
            raise
        if self._triton:
            self._triton.watch()

    @property
    def address(self) -> str:
        return format_address(self._options.host, self._options.port)

    async def stop(self) -> None:
        """Stop the gateways after their calls in flight, then Triton."""
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
        if self._port_reservation:
            self._port_reservation.close()
        if self._status:
            self._status.close()
        if self._state_folder:
            self._state_folder.close()
        self._metrics.remove()

    def schedule_worker_restart(self) -> None:
        """Replace the gateway processes one by one, and then the HTTP process; for a signal handler."""

        async def restart() -> None:
            assert self._gateways is not None
            async with self._restart_lock:
                if await self._gateways.replace_all() and self._http:
                    await self._http.replace(self._gateways.options)

        self._spawn(restart())

    async def _start_control(self, port: int) -> None:
        assert self._releases is not None
        manager = self._releases
        commands = (
            manager.load, manager.promote, manager.rollback, manager.unload, manager.status,
            manager.set_canary, manager.clear_canary, manager.set_shadow, manager.clear_shadow,
        )  # fmt: skip
        by_name = {command.__name__: command for command in commands}
        self._control = ControlServer(supervisor_control_path(port), by_name)
        await self._control.start()

    async def _apply_traffic_split(self, traffic_split: TrafficSplit) -> None:
        """Have all processes use a traffic split.

        Raises:
            ListingVisionError: a gateway process does not; all use the one before.
        """
        assert self._gateways is not None
        before = self._gateways.options.traffic_split
        write_traffic_split(self._metrics.path, traffic_split)
        try:
            await self._gateways.apply_traffic_split(traffic_split)
        except BaseException:
            assert before is not None
            write_traffic_split(self._metrics.path, before)
            raise

    def _on_unhealthy_releases(self, pid: int, unhealthy: Sequence[str]) -> None:
        canary = self._releases.canary if self._releases else None
        if canary is not None and canary in unhealthy and not self._is_removing_canary:
            self._is_removing_canary = True
            self._spawn(self._remove_canary(canary, f"gateway process {pid} found it unhealthy"))

    async def _remove_canary(self, canary: str, reason: str) -> None:
        assert self._releases is not None
        try:
            if await self._releases.remove_canary(canary, reason):
                self._own_metrics.canaries_removed.inc()
        except ListingVisionError as error:  # the next gateway process that finds it unhealthy tries again
            _log.error("the canary %s could not be removed: %s", canary, error)
        finally:
            self._is_removing_canary = False

    def _start_status(self) -> None:
        if self._options.status_port is None:
            return
        self._status = StatusServer(self._options.host, self._options.status_port, self.status_pages)
        _log.info("metrics and health at http://%s", format_address(self._options.host, self._status.port))

    @property
    def status_pages(self) -> Mapping[str, Callable[[], HttpResponse]]:
        """Paths of the status port, each with the function that responds."""
        return StatusPages(
            self._metrics,
            list_gateways=lambda: self._gateways.pids if self._gateways else [],
            fetch_triton_metrics=lambda: self._triton.fetch_metrics() if self._triton else b"",
            list_problems=self._list_problems,
            loop=self._loop,
        ).by_path

    def _list_problems(self) -> list[str]:
        fallback = [self._fallback_reason] if self._fallback_reason else []
        return [*fallback, *(self._triton.problems if self._triton else [])]

    async def _start_triton(self) -> None:
        try:
            installation = find_triton()
        except TritonNotInstalled as error:
            self._fall_back_to_in_process(error)
            return
        local = LocalTriton(self._bundle, installation, self._options.repository_options, traces=self._options.traces)
        self._triton = TritonWatchdog(
            local,
            self._bundle,
            health_interval_s=self._options.health_interval_s,
            restarts=self._own_metrics.restarts,
            degraded=self._own_metrics.triton_degraded,
        )
        try:
            await self._triton.start()
        except EngineUnavailable as error:
            await self._triton.stop()
            self._triton = None
            self._fall_back_to_in_process(error)
            return
        self._options = replace(self._options, triton=self._triton.address, owns_triton=True)

    def _fall_back_to_in_process(self, cause: ListingVisionError) -> None:
        if self._options.require_triton:
            raise cause
        _log.error("no Triton: the gateway processes run the model themselves, with ONNX Runtime: %s", cause)
        first_line = str(cause).partition("\n")[0]
        self._fallback_reason = f"the gateway processes run the model themselves: {first_line}"
        self._own_metrics.engine_fallback.set(1)
        self._options = replace(self._options, in_process=True)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _find_triton_problem(options: ServeOptions) -> str | None:
    """Return why a Triton on another machine may not be safe.

    Raises:
        ListingVisionError: the same, where the options require one that is.
    """
    assert options.triton is not None
    if not is_reachable_by_others(options.triton):
        return None
    engine = TritonEngine(options.triton, access=options.triton_access)
    try:
        problem = find_version_problem(await engine.fetch_version(), options.triton)
    except EngineError as error:
        problem = f"whether this Triton has known security faults cannot be told: {error}"
    finally:
        await engine.close()
    if problem and options.require_patched_triton:
        raise ListingVisionError(problem)
    return problem


def _require_installed(option: str, extra: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ListingVisionError(f"{option} needs {', '.join(missing)}: pip install 'listing-vision[{extra}]'")


def _validate_prefixes(prefixes: Sequence[str]) -> None:
    from serving.gateway.photo_fetch import check_prefixes  # aiohttp, only where it is needed

    check_prefixes(prefixes)


async def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then shut down cleanly; SIGHUP replaces the gateway processes one by one."""
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_requested.set)
    loop.add_signal_handler(signal.SIGHUP, _log.info, "SIGHUP is ignored: the start is not complete")
    supervisor = Supervisor(options)
    starting = asyncio.create_task(supervisor.start())
    stopping = asyncio.create_task(stop_requested.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        _log.info("stopping before the start is complete")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    await starting
    loop.add_signal_handler(signal.SIGHUP, supervisor.schedule_worker_restart)
    _log.info("listening on %s (pid %d, %d gateway processes)", supervisor.address, os.getpid(), options.workers)
    stop_heartbeat()
    await stop_requested.wait()
    _log.info("stopping: health is NOT_SERVING, calls in flight may finish")
    await supervisor.stop()
    _log.info("stopped")
