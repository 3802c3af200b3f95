"""Folders that nobody else can open, and that are removed where their owner was killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serving.processes.temporary_folders import (
    MAX_SOCKET_PATH_BYTES,
    TemporaryFolder,
    create_private_folder,
    list_private_folders,
    remove_abandoned_folders,
)
from tests.conftest import ROOT

PREFIX = f"listing-vision-test-{os.getpid()}-"


@pytest.fixture(autouse=True)
def short_folder(monkeypatch):
    """A folder for temporary files of this test alone; pytest's own has a longer path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def create_in_killed_process(folder: Path) -> None:
    program = f"""
import os, signal, tempfile
tempfile.tempdir = {str(folder)!r}
from serving.processes.temporary_folders import TemporaryFolder
made = TemporaryFolder({PREFIX!r}, longest_name="socket")
(made.path / "file").write_text("left")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9


def test_a_folder_is_for_its_user_alone_and_removed_with_its_content(short_folder):
    folder = TemporaryFolder(PREFIX, longest_name="socket")
    assert folder.path.parent == short_folder
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "file").touch()
    folder.remove()
    folder.remove()
    assert list(short_folder.iterdir()) == []


def test_only_what_a_killed_process_left_is_removed(short_folder):
    used = TemporaryFolder(PREFIX, longest_name="socket")
    of_another_program = short_folder / f"{PREFIX}unlocked"
    of_another_program.mkdir(mode=0o700)
    (short_folder / f"{PREFIX}link").symlink_to(used.path)
    create_in_killed_process(short_folder)
    (killed,) = set(list_private_folders(PREFIX)) - {used.path, of_another_program}
    assert remove_abandoned_folders(PREFIX) == [killed]
    assert not killed.exists()
    assert used.path.is_dir()
    assert of_another_program.is_dir()
    assert remove_abandoned_folders(PREFIX) == []


def test_what_others_can_open_or_own_is_not_found(short_folder):
    (short_folder / f"{PREFIX}open").mkdir(mode=0o755)
    if os.getuid() == 0:
        foreign = short_folder / f"{PREFIX}foreign"
        foreign.mkdir(mode=0o700)
        os.chown(foreign, 65534, 65534)
    assert list_private_folders(PREFIX) == []


def test_paths_of_sockets_are_short_enough(short_folder, monkeypatch):
    longest_name = "x" * (MAX_SOCKET_PATH_BYTES - len(f"{short_folder}/{PREFIX}/") - 8)
    folder = create_private_folder(PREFIX, longest_name=longest_name)
    assert folder.parent == short_folder
    assert len(str(folder / longest_name)) == MAX_SOCKET_PATH_BYTES
    deep = short_folder / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    elsewhere = create_private_folder(PREFIX, longest_name="socket")
    assert elsewhere.parent == Path("/tmp")
    elsewhere.rmdir()
    with pytest.raises(OSError, match="set TMPDIR to a folder with a shorter one"):
        create_private_folder(PREFIX, longest_name="x" * MAX_SOCKET_PATH_BYTES)
