"""A child process that becomes ready, freezes, exits or does not start, and the delays between restarts."""

import asyncio
import os
import signal
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from serving.config import ServeOptions
from serving.processes.control import ControlUnavailable
from serving.supervisor.managed_process import RECENT_EXITS_WINDOW_S, ManagedProcess, RestartBackoff
from vision.errors import ListingVisionError

CHILD = """
    import asyncio, os, pathlib, signal, socket, sys
    from serving.config import ServeOptions
    from serving.processes.control import ControlServer
    from serving.processes.sockets import process_control_path

    async def main(options, supervisor):
        async def refuse():
            from vision.errors import ListingVisionError
            raise ListingVisionError("refused")
        async def ping():
            return "pong"
        stop = asyncio.Event()
        if options.host != "stubborn":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        path = process_control_path(options.runtime_folder, os.getpid())
        await ControlServer(path, {"ping": ping, "refuse": refuse}).start()
        if options.host != "broken":
            supervisor.send(os.environ.get("MESSAGE", "ready").encode())
            await stop.wait()

    asyncio.run(main(ServeOptions.from_json(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))))
"""


@pytest.fixture
def options(tmp_path):
    return ServeOptions(bundle=tmp_path, runtime_folder=tmp_path, health_interval_s=0.05, drain_s=0, grace_period_s=1)


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "child_of_a_test.py").write_text(textwrap.dedent(CHILD))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return lambda options, **more: ManagedProcess.start("test process", "child_of_a_test", options, **more)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_is_ready_takes_commands_and_stops(start, options):
    async def run():
        process = await start(options, environment={**os.environ, "MESSAGE": "8080"})
        assert process.ready_message == b"8080"
        assert await process.send_command("ping", timeout_s=10) == "pong"
        with pytest.raises(ListingVisionError, match="refused"):
            await process.send_command("refuse", timeout_s=10)
        watch = asyncio.create_task(process.watch("ping"))
        await process.stop()
        assert process.is_stopping
        assert await watch == 0
        assert await process.has_exited()
        with pytest.raises(ControlUnavailable, match=rf"test process {process.pid}: "):
            await process.send_command("ping", timeout_s=10)

    asyncio.run(run())


def test_one_that_exits_before_it_is_ready_is_an_error(start, options):
    with pytest.raises(OSError, match="the test process did not start; see the log above"):
        asyncio.run(start(replace(options, host="broken")))


def test_a_frozen_one_is_killed_after_its_heartbeats(start, options, monkeypatch):
    monkeypatch.setattr("serving.processes.control.HEARTBEAT_TIMEOUT_S", 0.2)
    heartbeats = []

    async def run():
        process = await start(options)

        def on_heartbeat(response):
            heartbeats.append(response)
            if len(heartbeats) == 3:
                process.send_signal(signal.SIGSTOP)

        return await asyncio.wait_for(process.watch("ping", on_heartbeat), 60)

    assert asyncio.run(run()) == -signal.SIGKILL
    assert heartbeats == ["pong"] * 3


def test_one_that_ignores_sigterm_is_killed(start, options, monkeypatch):
    monkeypatch.setattr("serving.supervisor.managed_process.KILL_MARGIN_S", 0.0)

    async def run():
        process = await start(replace(options, host="stubborn", grace_period_s=0.2))
        await process.stop()
        return process.pid

    assert not is_running(asyncio.run(run()))


def test_restarts_slow_down_while_exits_are_frequent():
    now_s = [0.0]
    backoff = RestartBackoff(clock=lambda: now_s[0])
    assert [backoff.record_exit() for _ in range(5)] == [0.0, 0.5, 2.0, 5.0, 5.0]
    now_s[0] += RECENT_EXITS_WINDOW_S
    assert backoff.record_exit() == 0.0
