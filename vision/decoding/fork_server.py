"""The fork server, which forks decode workers, and the work of a decode worker; its client is `fork_client`.

A native decoder that crashes, hangs or exhausts memory on a hostile photo ends its worker and nothing else. The fork
server has imported all that a worker needs, so that a new worker starts within milliseconds.

    python -m vision.decoding.fork_server FD

FD is a sequenced-packet socket. Each message on it asks for one worker: it has the `DecodeSettings` and, as passed file
descriptors, the worker's socket and memory. The response is the worker's pid. A request to a worker is the number of
encoded bytes in its memory. The worker replaces them by the photo's pixels and responds with `OK`, or responds with
what was wrong. The fork server and its workers end when the other side of their socket closes.
"""

import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass

import numpy as np

from vision import errors
from vision.errors import PhotoError
from vision.images import PhotoLimits, Preprocessing, prepare_photo
from vision.runtime.lifetime import die_with_parent

__all__ = ["MAX_RESPONSE_BYTES", "NUM_BYTES_STRUCT", "OK", "PID_STRUCT", "DecodeSettings", "parse_photo_error"]

NUM_BYTES_STRUCT = struct.Struct("=Q")
PID_STRUCT = struct.Struct("=i")
OK = b"+"
MAX_RESPONSE_BYTES = 4096
"""Longest response: the class of an error, a line feed, its message."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How a worker decodes."""

    preprocessing: Preprocessing
    limits: PhotoLimits
    max_memory_bytes: int
    """Limit of the address space; a larger allocation fails, or crashes native code that does not check it."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DecodeSettings":
        raw = json.loads(text)
        return cls(
            preprocessing=Preprocessing(**raw["preprocessing"]),
            limits=PhotoLimits(**raw["limits"]),
            max_memory_bytes=raw["max_memory_bytes"],
        )

    @property
    def shared_memory_bytes(self) -> int:
        """Size of a worker's memory, for an encoded photo or its pixels."""
        return max(self.limits.max_bytes, 3 * self.preprocessing.input_px**2)


def parse_photo_error(response: bytes) -> PhotoError:
    """The error in a worker's response; any other response is that of a corrupted worker and means a crash."""
    name, _, message = response.decode(errors="replace").partition("\n")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PhotoError):
        return kind(message)
    return errors.PhotoDecoderCrashed("it broke the decoder; save it again as JPEG")


def main() -> None:
    fork_server = socket.socket(fileno=int(sys.argv[1]))
    # A terminal sends Ctrl-C to all processes; the gateway decides when its decoders end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Ended workers need no wait: the gateway notices the end of their socket.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    own_pid = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(fork_server, 65536, 2)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            # A worker must never continue as a second fork server, whatever happens.
            try:
                fork_server.close()
                die_with_parent(signal.SIGKILL, parent=own_pid)
                _run_worker(DecodeSettings.from_json(message.decode()), *descriptors)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        fork_server.send(PID_STRUCT.pack(pid))


def _run_worker(settings: DecodeSettings, socket_fd: int, memory_fd: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (settings.max_memory_bytes, settings.max_memory_bytes))
    # Crashes are expected here; core dumps would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=socket_fd) as sock, mmap.mmap(memory_fd, settings.shared_memory_bytes) as shared:
        while request := sock.recv(NUM_BYTES_STRUCT.size):
            sock.send(_decode_photo(shared, NUM_BYTES_STRUCT.unpack(request)[0], settings))


def _decode_photo(shared: mmap.mmap, num_bytes: int, settings: DecodeSettings) -> bytes:
    try:
        photo = prepare_photo(shared[:num_bytes], settings.preprocessing, settings.limits)
    except PhotoError as error:
        return f"{type(error).__name__}\n{error}".encode()[:MAX_RESPONSE_BYTES]
    np.frombuffer(shared, np.uint8, photo.size)[:] = photo.reshape(-1)
    return OK


if __name__ == "__main__":
    main()
