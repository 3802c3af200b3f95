"""Bearer tokens from a file."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from serving.auth.file_watcher import FileWatcher
from vision.errors import ListingVisionError

__all__ = ["StaticTokenVerifier"]

_log = logging.getLogger(__name__)


class StaticTokenVerifier:
    """Knows the tokens of a file: one line per caller, its name and the SHA-256 of its token in hex.

    `printf %s "$TOKEN" | sha256sum` prints the second word. The file reveals no token, and is reloaded when it changes.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ListingVisionError: the file cannot be used."""
        self._path = path
        self._watcher = FileWatcher(path, clock=clock)
        self._callers = self._load_tokens()

    async def identify_caller(self, token: str) -> str | None:
        """The name of the caller; None: the token is not in the file."""
        if self._watcher.has_changed():
            try:
                self._callers = self._load_tokens()
            except ListingVisionError as error:
                _log.warning("%s; the old tokens stay", error)
        # The key is a hash, so the time of the lookup reveals nothing about a token.
        return self._callers.get(hashlib.sha256(token.encode()).hexdigest())

    def _load_tokens(self) -> Mapping[str, str]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ListingVisionError(f"token file {self._path} cannot be read: {error}") from error
        callers = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) != 64 or set(words[1].lower()) - set("0123456789abcdef"):
                raise ListingVisionError(f"token file {self._path}, line {number}: not a name and a SHA-256 in hex")
            callers[words[1].lower()] = words[0]
        if not callers:
            raise ListingVisionError(f"token file {self._path} names no caller")
        return callers
