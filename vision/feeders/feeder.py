"""A feeder: reads photos, has them decoded, and fills slabs of the model's input in shared memory.

    python -m vision.feeders.feeder SOCKET_FD MEMORY_FD

It belongs to a `vision.feeders.pool`, which sends its settings and then tasks, and ends with it. Photos are read on
threads, ahead of the decode workers; all else happens in one loop, so that a photo costs few switches of threads.
"""

import mmap
import os
import queue
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from vision.decoding.fork_client import Decoder, ForkServer, InlineDecoder
from vision.errors import PhotoDecoderCrashed, PhotoError, PhotoServiceBusy, PhotoTimedOut
from vision.feeders.photo_reader import PhotoFailure, PhotoReader
from vision.feeders.protocol import READ_AHEAD, FeederSettings, FeedResult, FeedTask
from vision.images import Photo
from vision.runtime.lifetime import die_with_parent

__all__ = ["MAX_BUSY_ATTEMPTS", "Feeder"]

MAX_BUSY_ATTEMPTS = 10
"""Attempts to decode a photo on a machine that is too busy for it, before the feeder gives up."""
_MAX_WAIT_S = 60.0


@dataclass(eq=False)
class _Task:
    slab: int
    num_remaining: int
    failures: dict[int, PhotoFailure] = field(default_factory=dict)


@dataclass(eq=False)
class _Photo:
    task: _Task
    place: int
    url: str
    data: bytes = b""
    failure: PhotoFailure | None = None
    """Why it could not be read."""
    num_attempts: int = 0
    has_crashed: bool = False
    """Whether it has crashed a decode worker, or taken too long."""


@dataclass(eq=False)
class _Running:
    decoder: Decoder
    photo: _Photo
    check_at_s: float


class Feeder:
    """Serves one connection."""

    def __init__(
        self,
        settings: FeederSettings,
        decoders: Sequence[Decoder | InlineDecoder],
        connection: Connection,
        memory: mmap.mmap,
    ) -> None:
        self._connection = connection
        self._slabs = settings.view_slabs(memoryview(memory))
        self._reader = PhotoReader("", stop=threading.Event(), timeout_s=settings.photo_timeout_s)
        self._num_decoders = len(decoders)
        self._idle = list(decoders)
        self._running: dict[int, _Running] = {}
        self._has_begun = self._has_given_up = False
        # A photo is in one of these, being read, or being decoded.
        self._submitted: deque[_Photo] = deque()
        self._to_read: queue.SimpleQueue[_Photo] = queue.SimpleQueue()
        self._read: deque[_Photo] = deque()
        self._num_read_ahead = 0
        self._wait_times_s = {"read": 0.0, "model": 0.0}
        self._wake_fd = os.eventfd(0)
        self._events = select.poll()
        for descriptor in (connection.fileno(), self._wake_fd):
            self._events.register(descriptor, select.POLLIN)
        for _ in range(READ_AHEAD * self._num_decoders):
            threading.Thread(target=self._read_photos, name="read", daemon=True).start()

    def run(self) -> None:
        """Fill slabs until the other side closes, or the machine remains too busy to decode."""
        while not self._has_given_up:
            is_reading = self._num_read_ahead > len(self._running) + len(self._read)
            began_s = time.monotonic()
            events = self._events.poll(1000 * self._compute_wait_s())
            if self._has_begun:
                waited_s = (time.monotonic() - began_s) * len(self._idle)
                self._wait_times_s["read" if is_reading else "model"] += waited_s
            for descriptor, _ in events:
                if descriptor == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                elif descriptor in self._running:
                    self._poll_decoder(descriptor)
                elif not self._receive_task():
                    return
            self._check_times()
            self._start_decoding()
            self._start_reading()

    def _receive_task(self) -> bool:
        """Take up a task; False: the other side has closed."""
        try:
            received = FeedTask.from_json(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            return False
        task = _Task(received.slab, len(received.urls))
        self._has_begun = True
        self._submitted.extend(_Photo(task, place, url) for place, url in enumerate(received.urls))
        return True

    def _start_reading(self) -> None:
        while self._submitted and self._num_read_ahead < READ_AHEAD * self._num_decoders:
            self._num_read_ahead += 1
            self._to_read.put(self._submitted.popleft())

    def _read_photos(self) -> None:
        while True:
            photo = self._to_read.get()
            found = self._reader.read(photo.url)
            if isinstance(found, PhotoFailure):
                photo.failure = found
            else:
                photo.data = found
            self._read.append(photo)
            # Otherwise the loop looks for it when a decoder is done; a decoder that is idle by then has been seen here.
            if self._idle:
                os.eventfd_write(self._wake_fd, 1)

    def _start_decoding(self) -> None:
        while self._idle and self._read:
            photo = self._read.popleft()
            if photo.failure:
                self._fail(photo, photo.failure)
                continue
            decoder = self._idle.pop()
            decoder.begin(photo.data)
            if isinstance(decoder, InlineDecoder):
                self._idle.append(decoder)
                self._finish(photo, decoder.end())
                return  # to receive tasks, and have photos read, between two photos
            self._running[decoder.fileno()] = _Running(decoder, photo, time.monotonic() + decoder.next_check_s)
            self._events.register(decoder, select.POLLIN)

    def _poll_decoder(self, descriptor: int) -> None:
        running = self._running[descriptor]
        result = running.decoder.poll()
        if result is None:
            running.check_at_s = time.monotonic() + running.decoder.next_check_s
            return
        del self._running[descriptor]
        self._events.unregister(descriptor)
        self._idle.append(running.decoder)
        self._finish(running.photo, result)

    def _check_times(self) -> None:
        now_s = time.monotonic()
        for descriptor in [one for one, running in self._running.items() if running.check_at_s <= now_s]:
            self._poll_decoder(descriptor)

    def _compute_wait_s(self) -> float:
        if self._idle and self._read:
            return 0.0
        now_s = time.monotonic()
        return max(0.0, min((running.check_at_s - now_s for running in self._running.values()), default=_MAX_WAIT_S))

    def _finish(self, photo: _Photo, result: Photo | PhotoError) -> None:
        if not isinstance(result, PhotoError):
            self._slabs[photo.task.slab, photo.place] = result
            self._complete(photo)
        elif self._is_photos_fault(photo, result):
            self._fail(photo, PhotoFailure(reason=result.reason, message=str(result)))
        else:
            self._read.appendleft(photo)

    def _is_photos_fault(self, photo: _Photo, error: PhotoError) -> bool:
        """Whether the error is the photo's result; otherwise it is decoded again.

        A decoder may crash because of the machine, and its CPU time grows where cores are shared; only the second time
        the photo is blamed. A machine that is too busy is never a photo's result: if it remains so, the feeder ends.
        """
        photo.num_attempts += 1
        if isinstance(error, PhotoServiceBusy):
            if photo.num_attempts == MAX_BUSY_ATTEMPTS:
                message = f"{photo.url} is not decoded after {MAX_BUSY_ATTEMPTS} attempts: {error}"
                self._connection.send_bytes(FeedResult(slab=photo.task.slab, error=message).to_json())
                self._has_given_up = True
            return False
        if isinstance(error, (PhotoDecoderCrashed, PhotoTimedOut)) and not photo.has_crashed:
            photo.has_crashed = True
            return False
        return True

    def _fail(self, photo: _Photo, failure: PhotoFailure) -> None:
        photo.task.failures[photo.place] = failure
        self._complete(photo)

    def _complete(self, photo: _Photo) -> None:
        self._num_read_ahead -= 1
        photo.data = b""
        task = photo.task
        task.num_remaining -= 1
        if not task.num_remaining:
            result = FeedResult(slab=task.slab, failures=task.failures, wait_times_s=self._wait_times_s)
            self._wait_times_s = dict.fromkeys(self._wait_times_s, 0.0)
            self._connection.send_bytes(result.to_json())


def _create_decoders(settings: FeederSettings) -> Iterator[Decoder | InlineDecoder]:
    if not settings.isolate:
        yield InlineDecoder(settings.decoding)
        return
    fork_server = ForkServer(settings.decoding, settings.python, path=Path(__file__).resolve().parents[2])
    for _ in range(settings.num_decoders):
        yield Decoder(fork_server, settings.decoding, time_limits=settings.time_limits)


def main() -> None:
    # A terminal sends Ctrl-C to all processes; the process with the model decides when its feeders end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
    connection, memory_fd = Connection(int(sys.argv[1])), int(sys.argv[2])
    settings = FeederSettings.from_json(connection.recv_bytes())
    Feeder(settings, list(_create_decoders(settings)), connection, mmap.mmap(memory_fd, 0)).run()


if __name__ == "__main__":
    main()
