"""Classify a stream of listings with bounded concurrency; the stream is read no faster than that."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.listing_request import ListingRequest, NumberedRequest
from serving.api.status import Refusal, build_status

__all__ = ["MAX_CONCURRENT_LISTINGS", "ListingStreams"]

MAX_CONCURRENT_LISTINGS = 16
"""Concurrent listings of one stream; with gRPC's window this bounds the memory that a stream can hold."""
LISTING_DEADLINE_S = 30.0
"""Deadline of one listing, from when it was read."""
POLL_INTERVAL_S = 0.02
"""Between checks for capacity."""

Classify = Callable[[ListingRequest, float], Awaitable[pb.ClassifyListingResponse]]
"""Classify one listing within a deadline in seconds. Raises Refusal."""
Write = Callable[[pb.ClassifyListingsResponse], Awaitable[Any]]


class ListingStreams:
    """The streams of one gateway process.

    Streams have lower priority than calls: a listing is started only while low-priority capacity is left. Until then
    the stream is not read, so that gRPC's flow control blocks the caller's writes.
    """

    def __init__(self, *, has_low_priority_capacity: Callable[[int], bool]) -> None:
        """Args: has_low_priority_capacity: whether that many more low-priority photos may be admitted."""
        self._has_low_priority_capacity = has_low_priority_capacity
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams: they stop reading and finish the listings that they have started."""
        self._closing.set()

    async def serve(self, requests: AsyncIterator[NumberedRequest], classify: Classify, write: Write) -> None:
        """Serve one stream to its end.

        Raises:
            Refusal: SHUTTING_DOWN; listings without a response may be sent elsewhere.
        """
        slots = asyncio.Semaphore(MAX_CONCURRENT_LISTINGS)
        writing = asyncio.Lock()

        async def respond(request: NumberedRequest) -> None:
            try:
                response = await _classify_with_retries(request, classify)
                async with writing:
                    await write(response)
            finally:
                slots.release()

        refused: Refusal | None = None
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(self._closing.wait())
            try:
                while (request := await self._read_next(requests, slots, closing)) is not None:
                    tasks.create_task(respond(request))
            except Refusal as refusal:  # of the next message; those that were read are answered
                refused = refusal
            finally:
                closing.cancel()
        if refused is not None:
            raise refused
        if self._closing.is_set():
            raise Refusal(
                reason="SHUTTING_DOWN",
                message="the service stops; send the listings without a response on another stream",
            )

    async def _read_next(
        self,
        requests: AsyncIterator[NumberedRequest],
        slots: asyncio.Semaphore,
        closing: "asyncio.Task[Any]",
    ) -> NumberedRequest | None:
        """Return the next listing once it may start; None at the end of the stream or when the service stops."""

        async def read_when_capacity() -> NumberedRequest | None:
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


async def _classify_with_retries(request: NumberedRequest, classify: Classify) -> pb.ClassifyListingsResponse:
    until_s = time.monotonic() + LISTING_DEADLINE_S
    while True:
        try:
            response = await classify(request.request, until_s - time.monotonic())
            return pb.ClassifyListingsResponse(sequence=request.sequence, response=response)
        except Refusal as refusal:
            wait_s = refusal.retry_after_s or 0.0
            # Only the stream waits for this listing: retry here instead of at the caller.
            if refusal.reason == "QUOTA_EXCEEDED":
                await asyncio.sleep(wait_s)
                until_s = time.monotonic() + LISTING_DEADLINE_S  # a low quota may take longer than any deadline
                continue
            if refusal.reason == "TOO_BUSY" and time.monotonic() + wait_s < until_s:
                await asyncio.sleep(wait_s)
                continue
            return pb.ClassifyListingsResponse(sequence=request.sequence, error=build_status(refusal))
