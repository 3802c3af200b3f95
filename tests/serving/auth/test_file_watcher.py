import os

import pytest

from serving.auth.file_watcher import CHECK_INTERVAL_S, FileWatcher
from tests.support.clock import ManualClock


@pytest.fixture
def watched(tmp_path):
    """Two files, a watcher of them and its clock."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text("one")
    clock = ManualClock()
    watcher = FileWatcher(first, second, clock=clock)
    clock.advance(CHECK_INTERVAL_S)
    return first, second, watcher, clock


def test_files_that_stay_have_not_changed(watched):
    _, _, watcher, clock = watched
    assert not watcher.has_changed()
    clock.advance(CHECK_INTERVAL_S)
    assert not watcher.has_changed()


@pytest.mark.parametrize("index", [0, 1])
def test_each_change_of_any_file_is_reported_once(watched, index):
    *paths, watcher, clock = watched
    paths[index].write_text("another")
    assert watcher.has_changed()
    clock.advance(CHECK_INTERVAL_S)
    assert not watcher.has_changed()
    clock.advance(CHECK_INTERVAL_S)
    stat = paths[index].stat()
    os.utime(paths[index], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert watcher.has_changed()


def test_files_are_looked_at_once_an_interval(watched):
    first, _, watcher, clock = watched
    assert not watcher.has_changed()
    first.write_text("another")
    clock.advance(0.9 * CHECK_INTERVAL_S)
    assert not watcher.has_changed()
    clock.advance(0.1 * CHECK_INTERVAL_S)
    assert watcher.has_changed()


def test_a_missing_file_is_logged_and_reported_when_it_is_back(watched, caplog):
    first, _, watcher, clock = watched
    first.unlink()
    assert not watcher.has_changed()
    assert "its last content stays in use" in caplog.text
    first.write_text("another")
    clock.advance(CHECK_INTERVAL_S)
    assert watcher.has_changed()
