"""The verbs of `model` against a supervisor's control socket."""

import asyncio
import threading
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from serving.cli.model import model_app
from serving.processes.control import ControlServer
from serving.processes.sockets import supervisor_control_path
from vision.errors import ListingVisionError

PORT = 1
"""No supervisor of another test or user has it."""


@contextmanager
def supervisor(**commands):
    """A control socket that takes `commands`, with an event loop of its own."""
    loop = asyncio.new_event_loop()
    server = ControlServer(supervisor_control_path(PORT), commands)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda *words: CliRunner().invoke(model_app, [*map(str, words), "--port", str(PORT)])


def test_verbs_become_commands_with_their_arguments(run):
    commands = []

    def record(name):
        async def command(**arguments):
            commands.append((name, arguments))
            return "1.2"

        return command

    names = ("load", "promote", "rollback", "set_canary", "clear_canary", "set_shadow", "clear_shadow", "unload")
    with supervisor(**{name: record(name) for name in names}):
        for words in (
            ("load", "/bundles/new"),
            ("promote", "1.2"),
            ("rollback",),
            ("canary", "1.2", "--share", 0.1),
            ("canary", "--off"),
            ("shadow", "1.2"),
            ("shadow", "--off"),
            ("unload", "1.2"),
        ):
            done = run(*words)
            assert done.exit_code == 0, done.output
    assert commands == [
        ("load", {"bundle": "/bundles/new"}),
        ("promote", {"release": "1.2"}),
        ("rollback", {}),
        ("set_canary", {"release": "1.2", "share": 0.1}),
        ("clear_canary", {}),
        ("set_shadow", {"release": "1.2", "share": 1.0}),
        ("clear_shadow", {}),
        ("unload", {"release": "1.2"}),
    ]


def test_status_lists_releases_and_why_a_canary_was_removed(run):
    async def status():
        return [{"release": "1.2", "state": "loaded", "name": "m", "bundle": "/b", "removal_reason": "unhealthy"}]

    with supervisor(status=status):
        done = run("status")
    assert "1.2" in done.output
    assert "removed as a canary: unhealthy" in done.output


def test_a_release_or_off_is_needed_and_not_both(run):
    assert run("canary").exit_code == 2
    assert run("shadow", "1.2", "--off").exit_code == 2


def test_a_port_without_a_supervisor_is_named(run):
    done = run("status")
    assert isinstance(done.exception, ListingVisionError)
    assert "give the --port that `listing-vision serve` listens on" in str(done.exception)
