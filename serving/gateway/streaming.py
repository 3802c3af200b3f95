"""Listing after listing on one stream: so many at once, read no faster than they are answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serving.api.status import Refusal
from serving.protocol import listing_vision_pb2 as pb

__all__ = ["MAX_CONCURRENT_LISTINGS", "ListingStreams"]

MAX_CONCURRENT_LISTINGS = 16
"""Of one stream at once; together with gRPC's own window all that a stream can hold of a gateway's memory."""
LISTING_DEADLINE_S = 30.0
"""Of one listing, from when it was read."""
POLL_INTERVAL_S = 0.02
"""Whether there is room by now."""

Classify = Callable[[pb.ClassifyListingRequest, float], Awaitable[pb.ClassifyListingResponse]]
"""One listing's, within so many seconds. Raises Refusal."""
Write = Callable[[pb.ClassifyListingsResponse], Awaitable[Any]]


class ListingStreams:
    """The streams of one gateway process.

    They yield to the calls that people wait for: a listing of a stream is begun only while there is ample room, and
    until then the stream is not read, so that its caller's writes wait.
    """

    def __init__(self, *, has_low_priority_capacity: Callable[[int], bool]) -> None:
        """Args: has_low_priority_capacity: whether so many more photos may be let in that nobody waits for."""
        self._has_low_priority_capacity = has_low_priority_capacity
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Have all streams read no further, answer what they have begun, and end."""
        self._closing.set()

    async def serve(
        self, requests: AsyncIterator[pb.ClassifyListingsRequest], classify: Classify, write: Write
    ) -> None:
        """Answer a stream to its end.

        Raises:
            Refusal: SHUTTING_DOWN; what was not answered may be sent elsewhere.
        """
        slots = asyncio.Semaphore(MAX_CONCURRENT_LISTINGS)
        writing = asyncio.Lock()

        async def respond(request: pb.ClassifyListingsRequest) -> None:
            try:
                response = await _classify_with_retries(request, classify)
                async with writing:
                    await write(response)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(self._closing.wait())
            try:
                while (request := await self._read_next(requests, slots, closing)) is not None:
                    tasks.create_task(respond(request))
            finally:
                closing.cancel()
        if self._closing.is_set():
            raise Refusal(
                reason="SHUTTING_DOWN", message="the service stops; send what was not answered on another stream"
            )

    async def _read_next(
        self,
        requests: AsyncIterator[pb.ClassifyListingsRequest],
        slots: asyncio.Semaphore,
        closing: "asyncio.Task[Any]",
    ) -> pb.ClassifyListingsRequest | None:
        """The next listing, once it may be begun; None: there is none, or the service stops."""

        async def read_when_capacity() -> pb.ClassifyListingsRequest | None:
            await slots.acquire()
            while not self._has_low_priority_capacity(1):
                await asyncio.sleep(POLL_INTERVAL_S)
            return await anext(requests, None)

        reading = asyncio.ensure_future(read_when_capacity())
        try:
            await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        finally:
            reading.cancel()


async def _classify_with_retries(
    request: pb.ClassifyListingsRequest, classify: Classify
) -> pb.ClassifyListingsResponse:
    until_s = time.monotonic() + LISTING_DEADLINE_S
    while True:
        try:
            listing = await classify(request.listing, until_s - time.monotonic())
            return pb.ClassifyListingsResponse(sequence=request.sequence, listing=listing)
        except Refusal as refusal:
            wait_s = refusal.retry_after_s or 0.0
            # Nobody waits for this listing but the stream: it stands in the queue instead of its caller.
            if refusal.reason == "TOO_BUSY" and time.monotonic() + wait_s < until_s:
                await asyncio.sleep(wait_s)
                continue
            return pb.ClassifyListingsResponse(sequence=request.sequence, error=_to_listing_error(refusal))


def _to_listing_error(refusal: Refusal) -> pb.ListingError:
    error = pb.ListingError(
        code=refusal.code.value[0],
        message=refusal.message,
        reason=refusal.reason,
        violations=[pb.FieldViolation(field=f, description=d) for f, d in refusal.violations.items()],
    )
    if refusal.retry_after_s is not None:
        error.retry_delay_ms = int(1000 * refusal.retry_after_s)
    return error
