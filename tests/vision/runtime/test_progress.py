import logging
import re

import pytest

from tests.support.waiting import wait_until
from vision.runtime.progress import Heartbeat, Progress, describe_seconds, stop_heartbeat


@pytest.fixture
def clock():
    class Clock:
        now_s = 0.0

        def __call__(self):
            return self.now_s

    return Clock()


@pytest.fixture
def fast(monkeypatch):
    for name in ("FIRST_LOG_AFTER_S", "LOG_EVERY_S", "REFRESH_EVERY_S"):
        monkeypatch.setattr(f"vision.runtime.progress.{name}", 0.01)


def test_speed_and_remaining_time_are_those_of_this_process(clock):
    progress = Progress("features", 100, done=60, clock=clock)
    assert progress.describe() == "features: 60 of 100 photos"
    clock.now_s = 10.0
    progress.advance(20)
    assert progress.describe() == "features: 80 of 100 photos, 2 photos/s, 10 s left"


def test_a_caller_may_know_better(clock):
    progress = Progress("training", 100, unit="step", clock=clock)
    clock.now_s = 10.0
    progress.advance(10, details="loss 0.5", seconds_left=400)
    assert progress.describe() == "training: 10 of 100 steps, loss 0.5, 7 min left"


def test_work_that_cannot_be_counted_shows_how_long_it_takes(clock):
    progress = Progress("exporting", clock=clock)
    clock.now_s = 31.0
    assert progress.describe() == "exporting: 31 s so far"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (9000, "2.5 h")])
def test_times_are_rounded(seconds, text):
    assert describe_seconds(seconds) == text


def test_lines_are_logged_while_a_step_takes_long(caplog, fast, clock):
    with caplog.at_level(logging.INFO), Progress("export", clock=clock):
        wait_until(lambda: len(caplog.messages) >= 2, timeout_s=30)
    assert set(caplog.messages) == {"export: 0 s so far"}


def test_a_command_is_named_only_while_nothing_else_is_on_show(caplog, fast, clock):
    with caplog.at_level(logging.INFO), Heartbeat("brand add"):
        with Progress("photos", clock=clock):
            wait_until(lambda: len(caplog.messages) >= 5, timeout_s=30)
            shown = list(caplog.messages)
        caplog.clear()
        wait_until(lambda: len(caplog.messages) >= 2, timeout_s=30)
    assert set(shown[1:]) == {"photos: 0 s so far"}  # the first may be from before
    assert caplog.messages[-1].startswith("brand add: ")


def test_work_that_appears_late_does_not_delay_the_next_line(caplog, fast, clock, monkeypatch):
    with caplog.at_level(logging.INFO), Heartbeat("brand add"):
        wait_until(lambda: caplog.messages, timeout_s=30)
        monkeypatch.setattr("vision.runtime.progress.FIRST_LOG_AFTER_S", 3600.0)
        with Progress("photos", clock=clock):
            wait_until(lambda: "photos: 0 s so far" in caplog.messages, timeout_s=30)


def test_work_that_is_open_when_the_first_line_is_due_is_named_in_it(caplog, fast, clock, monkeypatch):
    monkeypatch.setattr("vision.runtime.progress.FIRST_LOG_AFTER_S", 3600.0)
    with caplog.at_level(logging.INFO), Progress("photos", clock=clock):
        monkeypatch.setattr("vision.runtime.progress.FIRST_LOG_AFTER_S", 0.01)
        monkeypatch.setattr("vision.runtime.progress.LOG_EVERY_S", 3600.0)
        with Heartbeat("brand add"):
            wait_until(lambda: caplog.messages, timeout_s=30)
    assert caplog.messages == ["photos: 0 s so far"]


@pytest.fixture
def count_bars(capsys):
    """Return how often a bar has been drawn so far."""
    drawn = ""

    def count(name):
        nonlocal drawn
        drawn += capsys.readouterr().err
        return len(re.findall(rf"{name} \[\d\d:\d\d\]", drawn))

    return count


def test_a_terminal_has_its_bar_and_no_line_of_the_command(caplog, count_bars, fast, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with caplog.at_level(logging.INFO), Progress("photos"), Heartbeat("brand add") as heartbeat:
        wait_until(lambda: count_bars("photos") >= 2, timeout_s=30)
        heartbeat.stop()
    assert caplog.messages == []


def test_a_server_that_is_ready_is_silent(caplog, fast):
    with caplog.at_level(logging.INFO), Heartbeat("serve") as heartbeat:
        wait_until(lambda: caplog.messages, timeout_s=30)
        stop_heartbeat()
        num_lines = len(caplog.messages)
        heartbeat.stop()  # returns when its thread has ended
        assert len(caplog.messages) == num_lines


def test_the_clock_of_a_terminal_runs_while_a_step_takes_long(count_bars, fast, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("export"):
        wait_until(lambda: count_bars("export") >= 3, timeout_s=30)


def test_other_ranks_show_nothing(caplog, monkeypatch):
    monkeypatch.setattr("vision.runtime.progress.FIRST_LOG_AFTER_S", 0.0)
    with caplog.at_level(logging.INFO), Progress("training", 10, enabled=False) as progress:
        progress.advance()
    assert caplog.messages == []
