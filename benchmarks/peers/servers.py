"""Start and stop the peers."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.common import BUILD, ROOT
from benchmarks.load import Connect, Connection, connect_grpc
from benchmarks.peers.environment import prepare_peer_python
from benchmarks.peers.http import HttpConnection

__all__ = ["FRAMEWORK_PEERS", "ISOLATED_PEERS", "PEERS", "Peer", "serve_peer"]

START_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Peer:
    arguments: tuple[str, ...]
    """Arguments of Python; {bundle} and {port} are filled in."""
    connect: Connect
    ready_path: str | None = None
    """Path that returns 200 once all workers are up; None waits for the port."""
    own_environment: bool = True
    """Whether it runs in the environment of `prepare_peer_python`."""
    variables: dict[str, str] = field(default_factory=dict)


def _connect_http(path: str) -> Connect:
    async def connect(address: str) -> Connection:
        return HttpConnection(address, path)

    return connect


PEERS = {
    "litserve": Peer(
        arguments=("-m", "benchmarks.peers.litserve_server", "{bundle}", "{port}"),
        connect=_connect_http("/predict"),
        ready_path="/health",
    ),
    "bentoml": Peer(
        arguments=(
            *("-m", "bentoml", "serve", "benchmarks.peers.bentoml_server:ListingVision"),
            *("--host", "127.0.0.1", "--port", "{port}", "--working-dir", str(ROOT)),
        ),
        connect=_connect_http("/classify"),
        ready_path="/readyz",
        variables={
            "PEER_BUNDLE": "{bundle}",
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(BUILD / "peers" / "bentoml"),
        },
    ),
    "plain_grpc": Peer(
        arguments=("-m", "benchmarks.peers.plain_grpc", "{bundle}", "{port}"),
        connect=connect_grpc,
        own_environment=False,
    ),
}

"""The peers as they ship: a photo is decoded by the process that serves."""
FRAMEWORK_PEERS = ("litserve", "bentoml")
"""Those of `PEERS` that are packaged servers."""
ISOLATED_PEERS = {
    f"{name}_isolated": replace(peer, variables=peer.variables | {"PEER_ISOLATE": "1"}) for name, peer in PEERS.items()
}
"""The same with the gateway's decode workers."""


@contextmanager
def serve_peer(name: str, bundle: Path) -> Iterator[tuple[str, list[int]]]:
    """Start a peer; yield its address and pids once it is ready, and stop all its processes afterwards."""
    peer, port = (PEERS | ISOLATED_PEERS)[name], _free_port()
    log_path = BUILD / "peers" / f"{name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    filled = {"bundle": str(bundle.resolve()), "port": str(port)}
    python = str(prepare_peer_python()) if peer.own_environment else sys.executable
    variables = {key: value.format(**filled) for key, value in peer.variables.items()}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [python, *(argument.format(**filled) for argument in peer.arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, peer, port, log_path)
        yield f"127.0.0.1:{port}", [process.pid]
    finally:
        _stop(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", peer: Peer, port: int, log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _is_ready(peer, port):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(f"the peer did not come up; {log_path}:\n{log_path.read_text()[-3000:]}")
        time.sleep(0.1)


def _is_ready(peer: Peer, port: int) -> bool:
    try:
        if peer.ready_path:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{peer.ready_path}", timeout=5) as answer:
                return bool(answer.status == 200)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill the whole session: a framework's workers outlive it when it is killed, and some when it is stopped."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
