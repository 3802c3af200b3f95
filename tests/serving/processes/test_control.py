"""How processes of a tree are told what to do: by their owner alone, and with an answer to whatever is asked."""

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


def send_commands(path, *asked, commands):
    """What each question is answered with, the answer or the error; and the modes of socket and folder."""

    async def run():
        server = ControlServer(path, commands)
        await server.start()
        found = []
        for command, arguments in asked:
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


def test_commands_are_answered_and_errors_told(tmp_path):
    asked = [
        ("double", {"number": 4}),
        ("double", {"number": -1}),
        ("double", {"what": 1}),
        ("triple", {}),
        ("breaks", {}),
    ]
    found, _ = send_commands(tmp_path / "own" / "1.sock", *asked, commands={"double": double, "breaks": raise_error})
    assert found[:2] == [8, "number -1 is below 0; give another"]
    assert found[2].startswith("TypeError")
    assert found[3] == "not a command of double, breaks"
    assert found[4] == "ZeroDivisionError: a bug"


def test_only_the_owner_reaches_it(tmp_path):
    _, modes = send_commands(tmp_path / "own" / "1.sock", commands={})
    assert modes == [0o600, 0o700]


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 4711)
    with pytest.raises(OSError, match="belongs to another user"):
        send_commands(tmp_path / "own" / "1.sock", commands={})


def test_what_a_killed_process_left_is_taken_over_and_nobody_listening_is_told(tmp_path):
    path = tmp_path / "own" / "1.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("left")
    assert send_commands(path, ("double", {"number": 1}), commands={"double": double})[0] == [2]
    with pytest.raises(ControlUnavailable, match="no process listens at") as raised:
        send_command(path, "double", number=1)
    assert not isinstance(raised.value, ControlTimeout)


def test_who_ends_before_it_answers_has_not_answered(tmp_path):
    path = tmp_path / "1.sock"
    with socket.socket(socket.AF_UNIX) as listening, ThreadPoolExecutor(1) as pool:
        listening.bind(str(path))
        listening.listen()
        asked = pool.submit(send_command, path, "double", number=1)
        connection, _ = listening.accept()
        connection.recv(100)
        connection.close()
        with pytest.raises(ControlUnavailable, match="exited before it responded"):
            asked.result()


def test_an_answer_that_does_not_come_is_not_waited_for(tmp_path):
    async def sleeps() -> None:
        await asyncio.sleep(2)

    path = tmp_path / "own" / "1.sock"
    asked = ("sleeps", {"timeout_s": 0.1})
    found, _ = send_commands(path, asked, commands={"sleeps": sleeps})
    assert found == [f"no response within 0.1 s at {path}"]


PROCESS = """
import asyncio, pathlib, sys
from serving.processes.control import ControlServer
async def main():
    async def alive():
        return "alive"
    await ControlServer(pathlib.Path(sys.argv[1]), {"alive": alive}).start()
    print("there", flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""


@pytest.fixture
def process(tmp_path):
    """A process with an event loop, and its socket."""
    path = tmp_path / "own" / "1.sock"
    with subprocess.Popen([sys.executable, "-c", PROCESS, path], stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        yield started, path
        started.kill()


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


def test_a_process_that_stands_still_is_silent_and_one_that_answers_in_between_is_not(process):
    started, path = process
    send_commands = []

    def on_heartbeat(answer):
        send_commands.append(answer)
        if len(send_commands) == 3:
            os.kill(started.pid, signal.SIGSTOP)
        if len(send_commands) == 2:
            raise ZeroDivisionError("whoever is told fails")

    assert monitor_process(path, should_continue=lambda: True, on_heartbeat=on_heartbeat)
    assert send_commands == ["alive"] * 3


def test_one_that_ends_is_not_silent_unless_it_takes_too_long_for_it(process):
    started, path = process
    started.kill()
    started.wait()
    asked = iter([True] * 5 + [False])
    assert not monitor_process(path, should_continue=lambda: next(asked))
    assert monitor_process(path, should_continue=lambda: True, shutdown_timeout_s=0.3)
