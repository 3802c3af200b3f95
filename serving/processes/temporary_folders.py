"""Temporary folders that only their user can open, and that the next process removes where their owner was killed."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

__all__ = [
    "MAX_SOCKET_PATH_BYTES",
    "TemporaryFolder",
    "create_private_folder",
    "list_private_folders",
    "remove_abandoned_folders",
]

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux (unix(7): `sun_path` has 108 bytes, the last one is 0)."""
_LOCK_NAME = "owner.lock"
_NUM_RANDOM_CHARACTERS = 8
"""Characters that `tempfile.mkdtemp` adds to a name."""


class TemporaryFolder:
    """A new folder of mode 0700 with a random name, locked until this process ends or removes it."""

    def __init__(self, prefix: str, *, longest_name: str) -> None:
        """Args:
        prefix: of the folder's name; `remove_abandoned_folders` finds folders by it.
        longest_name: of the sockets that are to be made in it.

        Raises:
            OSError: there is no place for such a folder.
        """
        self.path = create_private_folder(prefix, longest_name=longest_name)
        # Locked before it bears its name, so that no other process takes the folder for abandoned.
        unnamed = self.path / f"{_LOCK_NAME}.new"
        self._lock_fd = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK_NAME)

    def remove(self) -> None:
        """Remove the folder and what it contains; removing it again has no effect."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def create_private_folder(prefix: str, *, longest_name: str) -> Path:
    """Make a folder of mode 0700 with a random name, in which a socket's path is not too long.

    Raises:
        OSError: no folder for temporary files can be written to and has a short path.
    """
    for parent in _list_parents():
        num_bytes = len(os.fsencode(f"{parent}/{prefix}/{longest_name}")) + _NUM_RANDOM_CHARACTERS
        if num_bytes <= MAX_SOCKET_PATH_BYTES and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    raise OSError(
        f"none of {', '.join(_list_parents())} can be written to and has a path short enough for a socket "
        f"({MAX_SOCKET_PATH_BYTES} bytes); set TMPDIR to a folder with a shorter one"
    )


def list_private_folders(prefix: str) -> list[Path]:
    """This user's temporary folders that nobody else can open, by name; links are not followed."""
    found = []
    for path in (path for parent in _list_parents() for path in sorted(Path(parent).glob(f"{prefix}*"))):
        with contextlib.suppress(OSError):
            state = path.lstat()
            if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077:
                found.append(path)
    return found


def remove_abandoned_folders(prefix: str) -> list[Path]:
    """Remove this user's `TemporaryFolder`s whose owner has ended, however it ended; return their paths.

    A folder without a lock is left as it is: another program made it.
    """
    removed = []
    for path in list_private_folders(prefix):
        with contextlib.suppress(OSError):
            lock_fd = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
            finally:
                os.close(lock_fd)
    return removed


def _list_parents() -> list[str]:
    """Folders for temporary files, in the order of preference."""
    parents = (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", ""))
    return list(dict.fromkeys(filter(None, parents)))
