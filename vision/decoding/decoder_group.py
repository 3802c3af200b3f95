"""Several decode workers share the photos of a listing, for a caller that waits; Triton's models decode with it."""

import contextlib
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from vision.decoding.fork_client import Decoder, ForkServer, InlineDecoder
from vision.decoding.fork_server import DecodeSettings
from vision.decoding.time_limits import TimeLimits, create_busy_error
from vision.errors import PhotoError
from vision.images import Photo

__all__ = ["DecodeBatch", "DecoderGroup", "InlineDecoderGroup"]

_Result: TypeAlias = tuple[int, Photo | PhotoError]


class DecoderGroup:
    """Up to `size` decode workers; all but the first are started when a listing has photos for them."""

    def __init__(
        self,
        fork_server: ForkServer,
        settings: DecodeSettings,
        *,
        size: int,
        time_limits: TimeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fork_server = fork_server
        self._settings = settings
        self._size = size
        self._time_limits = time_limits or TimeLimits()
        self._clock = clock
        self._decoders = [self._create_decoder()]

    @property
    def pidfds(self) -> list[int]:
        """File descriptors of the workers that run."""
        return [decoder.pidfd for decoder in self._decoders]

    def compute_deadline_s(self) -> float:
        """When photos that begin now must be decoded, on the clock."""
        return self._clock() + self._time_limits.wall_s

    def begin(
        self, photos: Sequence[bytes | memoryview], *, deadline_s: float | None = None, yields: bool = False
    ) -> "DecodeBatch":
        """Start decoding; a batch that is not read to its end is abandoned by the next one.

        Args:
            photos: encoded.
            deadline_s: on the clock; the default is that of photos which begin now.
            yields: whether photos that take long yield the cores; see `Decoder.begin`.
        """
        with contextlib.suppress(OSError):  # no more processes: the others decode more photos each
            while len(self._decoders) < min(self._size, len(photos)):
                self._decoders.append(self._create_decoder())
        return DecodeBatch(
            self._decoders,
            photos,
            deadline_s=self.compute_deadline_s() if deadline_s is None else deadline_s,
            wall_s=self._time_limits.wall_s,
            clock=self._clock,
            yields=yields,
        )

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()

    def _create_decoder(self) -> Decoder:
        return Decoder(self._fork_server, self._settings, time_limits=self._time_limits, clock=self._clock)


class DecodeBatch:
    """Iterates over the number and the result of each photo, in the order in which they are decoded.

    Photos that have not been decoded by the deadline get PhotoServiceBusy.
    """

    def __init__(
        self,
        decoders: Sequence[Decoder],
        photos: Sequence[bytes | memoryview],
        *,
        deadline_s: float,
        wall_s: float,
        clock: Callable[[], float],
        yields: bool,
    ) -> None:
        self._photos = photos
        self._deadline_s = deadline_s
        self._wall_s = wall_s
        self._clock = clock
        self._yields = yields
        self._num_begun = 0
        self._idle = list(reversed(decoders))
        self._running: dict[Decoder, int] = {}
        self._begin_photos()

    def __iter__(self) -> Iterator[_Result]:
        while self._running or self._num_begun < len(self._photos):
            results = list(self._collect())
            # The next photos are decoded while the caller has these.
            self._begin_photos()
            yield from results
            if not results:
                self._wait()

    def _collect(self) -> Iterator[_Result]:
        for decoder, number in list(self._running.items()):
            result = decoder.poll()
            if result is not None:
                del self._running[decoder]
                self._idle.append(decoder)
                yield number, result
        if self._clock() >= self._deadline_s:
            for number in range(self._num_begun, len(self._photos)):
                yield number, create_busy_error(self._wall_s)
            self._num_begun = len(self._photos)

    def _begin_photos(self) -> None:
        while self._idle and self._num_begun < len(self._photos) and self._clock() < self._deadline_s:
            decoder = self._idle.pop()
            decoder.begin(self._photos[self._num_begun], deadline_s=self._deadline_s, yields=self._yields)
            self._running[decoder] = self._num_begun
            self._num_begun += 1

    def _wait(self) -> None:
        """Return when a worker has responded, or a limit of time may be reached."""
        if not self._running:
            return
        responses = select.poll()
        for decoder in self._running:
            responses.register(decoder, select.POLLIN)
        responses.poll(1000 * min(decoder.next_check_s for decoder in self._running))


class InlineDecoderGroup:
    """Like `DecoderGroup`, without isolation: the caller decodes one photo after another, and a photo may crash it."""

    def __init__(
        self,
        settings: DecodeSettings,
        *,
        time_limits: TimeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decoder = InlineDecoder(settings)
        self._wall_s = (time_limits or TimeLimits()).wall_s
        self._clock = clock

    def compute_deadline_s(self) -> float:
        return self._clock() + self._wall_s

    def begin(
        self, photos: Sequence[bytes | memoryview], *, deadline_s: float | None = None, yields: bool = False
    ) -> Iterator[_Result]:
        """Args: yields: has no effect: the caller's own priority cannot be raised again."""
        deadline_s = self.compute_deadline_s() if deadline_s is None else deadline_s
        for number, photo in enumerate(photos):
            if self._clock() >= deadline_s:
                yield number, create_busy_error(self._wall_s)
                continue
            self._decoder.begin(photo)
            yield number, self._decoder.end()

    def close(self) -> None:
        """Do nothing: there is no process to end."""
