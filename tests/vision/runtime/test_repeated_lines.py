"""Log lines that repeat: the first ones of a period stay, and the count of the others is logged."""

import logging
import subprocess
import sys

import pytest

from vision.runtime.repeated_lines import MAX_LINES, PERIOD_S, RepeatedLineFilter


@pytest.fixture
def logged():
    """A logger, the list of lines that it wrote, and its clock."""
    lines, now_s = [], [0.0]
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    handler.addFilter(RepeatedLineFilter(clock=lambda: now_s[0]))
    logger = logging.getLogger(__name__)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger, lines, now_s
    logger.removeHandler(handler)


def warn(logger, number, level=logging.WARNING):
    logger.log(level, "connection %d failed: 100%%", number)


def test_a_statement_that_repeats_is_limited_and_the_number_of_dropped_lines_is_logged(logged):
    logger, lines, now_s = logged
    for number in range(MAX_LINES + 7):
        warn(logger, number)
    logger.warning("something else")
    now_s[0] = PERIOD_S
    warn(logger, 1000)
    warn(logger, 1001)
    first, last, other, after, next_ = lines[0], *lines[MAX_LINES - 1 :]
    assert first == "connection 0 failed: 100%"
    assert last == f"connection {MAX_LINES - 1} failed: 100% (further lines like this one are dropped for up to 10 s)"
    assert other == "something else"
    assert after == "connection 1000 failed: 100% (7 lines like this one were dropped before)"
    assert next_ == "connection 1001 failed: 100%"


def test_lines_of_calls_are_not_limited(logged):
    logger, lines, _ = logged
    for number in range(3 * MAX_LINES):
        warn(logger, number, logging.INFO)
    assert len(lines) == 3 * MAX_LINES


PROGRAM = """
import logging
from vision.runtime.repeated_lines import limit_repeated_lines
logging.basicConfig()
limit_repeated_lines()
for number in range(500):
    logging.getLogger("a").warning("line %d", number)
"""


def test_what_a_process_writes_is_limited():
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == MAX_LINES
