"""A local Triton server process, started and stopped without leaving files, shared memory or processes behind."""

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from serving.inference.model_names import MODEL_NAME
from serving.observability.tracing import TraceOptions
from serving.processes.sockets import find_free_ports
from serving.processes.temporary_folders import TemporaryFolder, remove_abandoned_folders
from serving.triton import launcher
from serving.triton.config import RepositoryOptions, write_config
from serving.triton.install import TritonInstallation
from serving.triton.repository import write_repository
from vision.bundle import Bundle
from vision.errors import EngineUnavailable

__all__ = ["LocalTriton"]

_log = logging.getLogger(__name__)

_EXIT_TIMEOUT_S = 5
_SHM_BYTES = 16 << 20
_FOLDER_PREFIX = "listing-vision-triton-"
_SOCKET_NAME = "grpc"
# Triton adds a port to every address, to the path of a socket too.
_SOCKET_PORT = 0
_CRASHES_WHILE_TRACING = ("2.51",)
"""Versions of Triton that end with SIGSEGV about once in 40,000 requests that they trace."""
_SHM_FOLDER = Path("/dev/shm")


class LocalTriton:
    """One `tritonserver` that serves bundles, until it is stopped; only its user can reach it.

    It listens on a Unix socket in a folder of mode 0700, and on loopback for its metrics. Whoever reaches its gRPC
    methods can load a model, and so run code as its user (`file:` in RepositoryModelLoad); on a port of loopback, that
    is every user of the machine and every web page in a browser on it. A key in its arguments would be no protection:
    any user can read /proc/PID/cmdline.
    """

    def __init__(
        self,
        bundle: Bundle,
        installation: TritonInstallation,
        options: RepositoryOptions | None = None,
        *,
        traces: TraceOptions | None = None,
    ) -> None:
        """Args:
        bundle: the first model; `add_model` adds others.
        options: of the model repository; None: the best for most CPUs.
        traces: where Triton sends spans of requests that have a trace header; without effect in a version that crashes
            while tracing.
        """
        self._traces = None if installation.version in _CRASHES_WHILE_TRACING else traces
        self._installation = installation
        _remove_what_killed_owners_left()
        self._temporary_folder = TemporaryFolder(_FOLDER_PREFIX, longest_name=f"{_SOCKET_NAME}:{_SOCKET_PORT}")
        self._folder = self._temporary_folder.path
        self.repository = self._folder / "models"
        self.options = options or RepositoryOptions(backend="python")
        self.models: list[str] = []
        """Names of the models that it loads when it starts."""
        self.add_model(bundle, MODEL_NAME)
        self._shm_prefix = f"listing_vision_{os.getpid()}_{self._folder.name[-8:]}_"
        self._process: subprocess.Popen[bytes] | None = None
        # A restart runs on a thread, and must not start the process after a stop.
        self._lock = threading.Lock()
        self._stopped = False
        # The same after restarts, so that a client's channel reconnects to the new process.
        self._socket_path = self._folder / f"{_SOCKET_NAME}:{_SOCKET_PORT}"
        self._metrics_port = 0

    @property
    def address(self) -> str:
        """gRPC address; it stays the same."""
        return f"unix:{self._socket_path}"

    @property
    def metrics_url(self) -> str:
        """URL of the process that was started last; each start takes another port."""
        return f"http://127.0.0.1:{self._metrics_port}/metrics"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def log_path(self) -> Path:
        return self._folder / "triton.log"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def list_model_pids(self, name: str) -> frozenset[int]:
        """Pids of the processes that compute a model (Linux); only the Python backend has them."""
        return frozenset(_find_model_pids(f"{self.repository}/{name}/"))

    def list_all_model_pids(self) -> frozenset[int]:
        """Pids of the processes that compute any of its models."""
        return frozenset(_find_model_pids(f"{self.repository}/"))

    def add_model(self, bundle: Bundle, name: str, *, num_instances: int | None = None) -> None:
        """Put a model into the repository; a running server serves it once it loads it.

        Args: num_instances: of the model, which may grow with another call; None: all.
        """
        options = replace(self.options, model_environment=self._installation.model_environment, model_name=name)
        if name not in self.models:
            code = write_repository(bundle, self.repository, options) / str(options.version) / "model.py"
            if code.exists():
                # Otherwise the first model process would write the bytecode, and Triton reload the changed folder.
                python = self._installation.model_environment / "bin" / "python"
                subprocess.run([python, "-m", "py_compile", str(code)], check=False, timeout=60)
            self.models.append(name)
        write_config(bundle, self.repository, options, num_instances=num_instances)

    def remove_model(self, name: str) -> None:
        """Remove a model that the server has unloaded."""
        self.models.remove(name)
        shutil.rmtree(self.repository / name)

    def touch_model(self, name: str) -> None:
        """Mark the model as changed, so that the next load starts new processes for it."""
        # A new date of the configuration alone would not have Triton reload it.
        os.utime(self.repository / name / str(self.options.version))

    def start(self) -> None:
        """Start the process; it listens some seconds later (see `wait_until_listening`)."""
        self._socket_path.unlink(missing_ok=True)  # of a killed process
        with self.log_path.open("ab") as log:
            # In its own session, so that a terminal's Ctrl-C does not end it before the calls in flight.
            self._process = subprocess.Popen(
                self._build_command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._installation.process_environment(),
                start_new_session=True,
            )

    def _build_command(self) -> list[str]:
        root = self._installation.server_root
        (self._metrics_port,) = find_free_ports(1)
        return [
            *(sys.executable, "-I", "-S", launcher.__file__),
            str(self._installation.binary),
            f"--model-repository={self.repository}",
            f"--backend-directory={root / 'backends'}",
            f"--cache-directory={root / 'caches'}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            "--disable-auto-complete-config",
            f"--grpc-address=unix:{self._folder / _SOCKET_NAME}",
            f"--grpc-port={_SOCKET_PORT}",
            "--allow-http=false",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self._metrics_port}",
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            f"--backend-config=python,shm-default-byte-size={_SHM_BYTES}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *(_build_trace_arguments(self._traces) if self._traces else ()),
        ]

    def wait_until_listening(self, timeout_s: float = 60) -> None:
        """Return once the server accepts connections; only golden photos show that its model works.

        Raises:
            EngineUnavailable: it exited or does not listen in time; the message has the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.is_running():
                code = self._process.returncode if self._process else None
                raise EngineUnavailable(f"Triton exited with status {code} while starting{self._describe_cause()}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(str(self._socket_path))
                self._warn_of_readable_memory()
                return
            time.sleep(0.1)
        raise EngineUnavailable(f"Triton did not listen within {timeout_s:g} s{self._describe_cause()}")

    def stop(self) -> None:
        """Have it drain and exit, or kill it; then remove its files and shared memory."""
        with self._lock:
            self._stopped = True
            self._terminate_process(_EXIT_TIMEOUT_S + 2)
            self._temporary_folder.remove()

    def restart(self) -> None:
        """Stop the process if it still runs, killing it after two seconds, and start it on the same socket."""
        with self._lock:
            if not self._stopped:
                self._terminate_process(2)
                self.start()

    def _terminate_process(self, timeout_s: float) -> None:
        if self._process is not None:
            if self.is_running():
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                _log.warning("Triton did not exit within %g s and is killed", timeout_s)
                self._process.kill()
                self._process.wait()
            self._process = None
        self._kill_orphans()
        self._remove_shared_memory()

    def _kill_orphans(self) -> None:
        """Kill model processes that outlive a killed server: one may wait for ever for a lock that the server held."""
        for pid in self.list_all_model_pids():
            _log.warning("killing model process %d, which outlived its Triton", pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _remove_shared_memory(self) -> None:
        for region in _SHM_FOLDER.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)

    def _warn_of_readable_memory(self) -> None:
        if readable := [r.name for r in _SHM_FOLDER.glob(f"{self._shm_prefix}*") if r.stat().st_mode & 0o077]:
            _log.warning(
                "other users of this machine can read photos in /dev/shm (%s): the kernel takes no seccomp filter",
                ", ".join(readable),
            )

    def _describe_cause(self) -> str:
        """Return what may have kept it from starting, and the end of its log."""
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        tail = "\n".join(lines[-40:])
        with contextlib.suppress(OSError):
            memory = os.statvfs(_SHM_FOLDER)
            size_bytes, needed_bytes = memory.f_blocks * memory.f_frsize, self.options.num_instances * _SHM_BYTES
            if size_bytes <= needed_bytes:
                return (
                    f"; {_SHM_FOLDER} has {size_bytes >> 20} MiB and {self.options.num_instances} instances need "
                    f"more than {needed_bytes >> 20} (docker run --shm-size, or a larger emptyDir in memory):\n{tail}"
                )
        return f":\n{tail}"


def _remove_what_killed_owners_left() -> None:
    """Remove folders, model processes and shared memory of Tritons whose owner was killed."""
    for folder in remove_abandoned_folders(_FOLDER_PREFIX):
        _log.info("removed %s, which a killed process had left", folder)
        for pid in _find_model_pids(f"{folder}/"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for region in _SHM_FOLDER.glob(f"listing_vision_*_{folder.name[-8:]}_*"):
            with contextlib.suppress(OSError):
                region.unlink()


def _build_trace_arguments(options: TraceOptions) -> list[str]:
    settings = {
        "": {"mode": "opentelemetry", "level": "TIMESTAMPS", "rate": "0"},  # 0: only requests that have a header
        "opentelemetry,": {"url": options.url, "resource": "service.name=listing-vision-triton"},
    }
    return [f"--trace-config={kind}{name}={value}" for kind, named in settings.items() for name, value in named.items()]


def _find_model_pids(folder: str) -> list[int]:
    """Pids of model processes whose model is in a folder (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if folder.encode() in path.read_bytes() and _is_model_process(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def _is_model_process(pid: int) -> bool:
    """Return whether a process is a running model process, and not a zombie."""
    try:
        _, name, state = re.split(r" \(|\) ", Path(f"/proc/{pid}/stat").read_text(), maxsplit=2)
    except OSError:  # it has exited
        return False
    # The kernel keeps 15 characters of a name.
    return "triton_python_backend_stub".startswith(name) and not state.startswith("Z")
