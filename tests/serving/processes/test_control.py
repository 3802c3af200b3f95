"""Control sockets: who may use them, and what each command, failure and frozen process results in."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.processes.control import ControlServer, ControlTimeout, ControlUnavailable, monitor_heartbeat, send_command
from vision.errors import ListingVisionError


def send_commands(path, *requests, commands):
    """Results or errors of commands, and the modes of socket and folder."""

    async def run():
        server = ControlServer(path, commands)
        await server.start()
        found = []
        for command, arguments in requests:
            try:
                found.append(await asyncio.to_thread(send_command, path, command, **arguments))
            except ListingVisionError as error:
                found.append(str(error))
        modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)]
        await server.close()
        return found, modes

    return asyncio.run(run())


async def double(number: int) -> int:
    if number < 0:
        raise ListingVisionError("number -1 is below 0; give another")
    return 2 * number


async def raise_error() -> None:
    raise ZeroDivisionError("a bug")


def test_commands_return_results_or_errors(tmp_path):
    requests = [
        ("double", {"number": 4}),
        ("double", {"number": -1}),
        ("double", {"what": 1}),
        ("triple", {}),
        ("breaks", {}),
    ]
    found, _ = send_commands(tmp_path / "own" / "1.sock", *requests, commands={"double": double, "breaks": raise_error})
    assert found[:2] == [8, "number -1 is below 0; give another"]
    assert found[2].startswith("TypeError")
    assert found[3] == "not a command of double, breaks"
    assert found[4] == "ZeroDivisionError: a bug"


def test_only_the_owner_reaches_it(tmp_path):
    _, modes = send_commands(tmp_path / "own" / "1.sock", commands={})
    assert modes == [0o600, 0o700]


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 4711)
    with pytest.raises(OSError, match="belongs to another user"):
        send_commands(tmp_path / "own" / "1.sock", commands={})


def test_a_stale_socket_is_replaced_and_a_closed_one_is_an_error(tmp_path):
    path = tmp_path / "own" / "1.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("left")
    assert send_commands(path, ("double", {"number": 1}), commands={"double": double})[0] == [2]
    with pytest.raises(ControlUnavailable, match="no process listens at") as raised:
        send_command(path, "double", number=1)
    assert not isinstance(raised.value, ControlTimeout)


def test_an_exit_before_the_response_is_an_error(tmp_path):
    path = tmp_path / "1.sock"
    with socket.socket(socket.AF_UNIX) as listening, ThreadPoolExecutor(1) as pool:
        listening.bind(str(path))
        listening.listen()
        sent = pool.submit(send_command, path, "double", number=1)
        connection, _ = listening.accept()
        connection.recv(100)
        connection.close()
        with pytest.raises(ControlUnavailable, match="exited before it responded"):
            sent.result()


def test_a_command_times_out(tmp_path):
    async def hang() -> None:
        await asyncio.Event().wait()

    path = tmp_path / "own" / "1.sock"
    request = ("hang", {"timeout_s": 0.1})
    found, _ = send_commands(path, request, commands={"hang": hang})
    assert found == [f"no response within 0.1 s at {path}"]


PROCESS = """
import asyncio, errno, pathlib, resource, socket, sys
from serving.processes.control import ControlServer
def take_all_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(socket.socket())
    except OSError as error:
        assert error.errno == errno.EMFILE and len(taken) > 20
    return taken
async def main():
    async def alive():
        return "alive"
    await ControlServer(pathlib.Path(sys.argv[1]), {"alive": alive}).start()
    taken = take_all_descriptors() if sys.argv[2] == "exhausted" else []
    print("there", flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""


@pytest.fixture
def process(request, tmp_path):
    """A process with an event loop, and its socket; with the parameter `exhausted` it has no descriptors left."""
    path = tmp_path / "own" / "1.sock"
    command = [sys.executable, "-c", PROCESS, path, getattr(request, "param", "")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        assert started.stdout.readline() == b"there\n"
        yield started, path
        started.kill()


@pytest.mark.parametrize("process", ["exhausted"], indirect=True)
def test_commands_are_answered_where_callers_have_taken_all_descriptors(process):
    _, path = process
    for _ in range(20):
        assert send_command(path, "alive", timeout_s=30) == "alive"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: send_command(path, "alive", timeout_s=30), range(40)))
    assert found == ["alive"] * 40


def monitor_process(path, *, should_continue, shutdown_timeout_s=100.0, on_heartbeat=None):
    return asyncio.run(
        asyncio.wait_for(
            monitor_heartbeat(
                path,
                "alive",
                interval_s=0.05,
                should_continue=should_continue,
                shutdown_timeout_s=shutdown_timeout_s,
                on_heartbeat=on_heartbeat,
            ),
            60,
        )
    )


def test_a_process_is_frozen_after_missed_heartbeats_in_a_row(process):
    started, path = process
    responses = []

    def on_heartbeat(answer):
        responses.append(answer)
        if len(responses) == 3:
            os.kill(started.pid, signal.SIGSTOP)
        if len(responses) == 2:
            raise ZeroDivisionError("a bug of the supervisor")

    assert monitor_process(path, should_continue=lambda: True, on_heartbeat=on_heartbeat)
    assert responses == ["alive"] * 3


def test_a_process_that_shuts_down_is_frozen_only_if_that_takes_too_long(process):
    started, path = process
    started.kill()
    started.wait()
    answers = iter([True] * 5 + [False])
    assert not monitor_process(path, should_continue=lambda: next(answers))
    assert monitor_process(path, should_continue=lambda: True, shutdown_timeout_s=0.3)
