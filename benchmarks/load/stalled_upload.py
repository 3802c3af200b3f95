"""A caller that announces a message and never sends its last byte."""

import struct
import threading
from typing import Any

from benchmarks.load.raw_connection import RawConnection

__all__ = ["StalledUpload"]

_CHUNK = memoryview(bytes(1 << 20))


class StalledUpload:
    """Sends a message of a call up to its last byte, as fast as the service's windows allow."""

    def __init__(self, port: int, num_bytes: int, **options: Any) -> None:
        """Args:
        port: of the service.
        num_bytes: of the message.
        options: of the `RawConnection`.
        """
        self._connection = RawConnection(port, **options)
        self._prefix = memoryview(b"\0" + struct.pack(">I", num_bytes))
        self.num_left = num_bytes + len(self._prefix) - 1
        self.num_sent = 0
        self.is_refused = False
        """Whether the service has ended the call."""

    def start(self) -> None:
        self._connection.begin_call()
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._connection.close()

    def _run(self) -> None:
        try:
            while True:
                self._send_what_fits()
                _, is_ended = self._connection.read_frame()
                self.is_refused |= is_ended
        except (OSError, EOFError):
            self.is_refused = True

    def _send_what_fits(self) -> None:
        num_sent = -1
        while num_sent and self.num_left:
            data = self._prefix[self.num_sent :] or _CHUNK[: self.num_left]
            num_sent = self._connection.send(data)
            self.num_sent += num_sent
            self.num_left -= num_sent
