"""No process of a service can be made to fill the disk with one line: each limits the lines that repeat."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from serving.processes.control import send_command
from serving.processes.sockets import supervisor_control_path
from tests.support.serving_process import list_process_tree
from vision.errors import ListingVisionError
from vision.runtime.repeated_lines import MAX_LINES

FAILED, LIMITED = "a control command failed", "further lines like this one are dropped"


@pytest.fixture(scope="module")
def served(bundle, start_serving, tmp_path_factory):
    options = ("--in-process", "--no-isolate", "--workers", "2", "--http-port", "0")
    return start_serving(bundle.folder, tmp_path_factory.mktemp("limits") / "serve.log", *options)


def find_runtime_folder(served) -> Path:
    (gateway, *_) = served.list_gateways()
    options = Path(f"/proc/{gateway}/cmdline").read_text().split("\0")[3]
    return Path(json.loads(options)["runtime_folder"])


def fail_command(socket: Path, command: str) -> None:
    """Make the process at a control socket log an error."""
    with suppress(ListingVisionError):
        send_command(socket, command, no_such_argument=True)


def test_every_process_of_serve_drops_lines_that_repeat(served):
    http = served.list_processes("serving.http_api.process")
    processes = served.list_gateways() | http
    sockets = {int(path.stem): path for path in find_runtime_folder(served).glob("*.control")}
    # Whatever logs has a control socket, by which it can be made to: no process is forgotten here.
    assert len(http) == 1
    assert len(processes) == 3
    assert sockets.keys() == processes == set(list_process_tree(served.process.pid)) - {served.process.pid}
    commands = [(path, "ping" if pid in http else "list_unhealthy") for pid, path in sockets.items()]
    commands.append((supervisor_control_path(int(served.address.rsplit(":", 1)[1])), "status"))
    for number, (path, command) in enumerate(commands, start=1):
        for _ in range(20 * MAX_LINES):  # a slow machine needs more than one period
            if served.log.count(LIMITED) == number:
                break
            fail_command(path, command)
        assert served.log.count(LIMITED) == number, f"{command} at {path} is logged without a limit"
    assert served.log.count(FAILED) >= MAX_LINES * len(commands)
