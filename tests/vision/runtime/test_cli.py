import json
import subprocess
import sys

import pytest

from tests.support.waiting import wait_until
from vision.runtime.cli import create_cli_app, run_app

PROGRAM = """
import logging
import os
import sys
from vision.errors import ListingVisionError
from vision.runtime.cli import run_command

def verb(kind: str) -> None:
    logging.getLogger("some.module").warning("the %s", "message", extra={"request_id": "r-1"})
    if kind == "ours":
        raise ListingVisionError("a file is missing; give another one")
    if kind == "package":
        import no_such_package
    if kind == "threads":
        print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
    if kind == "core":
        import grpc
        grpc.server(None).add_insecure_port("256.0.0.1:1")
    if kind == "bug":
        raise KeyError("x")

run_command(verb)
"""


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path), **environment}
    )


@pytest.mark.parametrize(
    ("kind", "status", "line"),
    [
        ("fine", 0, ""),
        ("ours", 1, "listing-vision: a file is missing; give another one"),
        ("package", 1, "listing-vision: this needs the package 'no_such_package'; install the extra"),
        ("bug", 1, "listing-vision: unexpected KeyError: 'x' (--debug shows where)"),
    ],
)
def test_a_failure_is_one_line_and_exit_status_1(kind, status, line):
    done = run(kind)
    assert done.returncode == status
    logged, *failure = done.stderr.splitlines()
    assert logged.endswith("WARNING some.module: the message")
    assert [text.startswith(line) for text in failure] == ([True] if line else [])
    assert "Traceback" not in done.stderr
    assert ("Traceback" in run(kind, "--debug").stderr) == (status == 1)


def test_a_usage_error_is_exit_status_2():
    assert run().returncode == 2


def test_logs_are_json_lines_where_asked_for():
    record = json.loads(run("fine", LISTING_VISION_LOG_FORMAT="json").stderr)
    assert record.pop("time").endswith("+00:00")
    assert record == {"level": "WARNING", "logger": "some.module", "message": "the message", "request_id": "r-1"}


def test_lines_of_grpcs_core_do_not_get_between_json_lines():
    plain, as_json = run("core"), run("core", LISTING_VISION_LOG_FORMAT="json")
    assert "add_port.cc" in plain.stderr
    assert "add_port.cc" not in as_json.stderr
    first, *failure = as_json.stderr.splitlines()
    assert json.loads(first)["logger"] == "some.module"
    assert [line.split(":")[0] for line in failure] == ["listing-vision"]


def test_an_app_without_a_verb_shows_its_help(capsys, monkeypatch):
    app = create_cli_app("Some help.")
    app.command("one")(lambda: None)
    app.command("two")(lambda: None)
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit, match="0"):
        run_app(app)
    assert "Some help." in capsys.readouterr().out


def test_the_thread_policy_is_set_before_torch_is_loaded():
    assert run("threads").stdout.split() == ["PASSIVE", "False"]


def test_only_the_first_rank_says_that_the_command_runs(monkeypatch, caplog):
    def wait_for_line():
        wait_until(lambda: caplog.messages, timeout_s=60)

    app = create_cli_app("Some help.")
    monkeypatch.setattr("sys.argv", ["program"])
    monkeypatch.setattr("vision.runtime.progress.FIRST_LOG_AFTER_S", 0.01)
    app.command("one")(wait_for_line)
    with caplog.at_level("INFO"), pytest.raises(SystemExit, match="0"):
        run_app(app)
    assert caplog.messages == ["running: 0 s so far"]
    started = []
    monkeypatch.setattr("vision.runtime.cli.Heartbeat", started.append)
    monkeypatch.setattr("tests.vision.runtime.test_cli.wait_until", lambda *_, **__: None)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="0"):
        run_app(app)
    assert started == []


def test_a_command_is_named_whatever_options_stand_before_its_verbs(monkeypatch, caplog):
    app, group = create_cli_app("Some help."), create_cli_app("More help.")
    app.add_typer(group, name="group")
    group.command("one")(lambda: wait_until(lambda: caplog.messages, timeout_s=60))
    group.command("two")(lambda: None)
    monkeypatch.setattr("sys.argv", ["program", "--debug", "group", "one"])
    monkeypatch.setattr("vision.runtime.progress.FIRST_LOG_AFTER_S", 0.01)
    with caplog.at_level("INFO"), pytest.raises(SystemExit, match="0"):
        run_app(app)
    assert caplog.messages == ["group one: 0 s so far"]
