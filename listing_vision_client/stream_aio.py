"""`StreamedListings` for asyncio."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.requests import ListingToClassify
from listing_vision_client.stream import MAX_PENDING, ListingResult, PendingListings

__all__ = ["AsyncStreamedListings"]


class AsyncStreamedListings:
    """Give `iter_requests` to the stub's stream, and its responses to `iter_results`."""

    def __init__(self, listings: Iterable[ListingToClassify] | AsyncIterable[ListingToClassify]) -> None:
        self._source = _iterate(listings)
        self._pending = PendingListings()
        self._condition = asyncio.Condition()
        self._source_error: BaseException | None = None

    async def iter_requests(self) -> AsyncIterator[pb.ClassifyListingsRequest]:
        """Yield requests, as fast as the service reads."""
        has_more = True
        while True:
            request, wants_more = await self._wait_for_work(has_more=has_more)
            if request:
                yield request
            elif not wants_more:
                return
            else:
                request, has_more = await self._take_next()
                if request:
                    yield request

    async def iter_results(self, responses: AsyncIterable[pb.ClassifyListingsResponse]) -> AsyncIterator[ListingResult]:
        """Yield each listing once; raises what the caller's listings raised, once all listings before have a result."""
        async for response in responses:
            async with self._condition:
                result = self._pending.handle(response)
                self._condition.notify_all()
            if result:
                yield result
            for refused in self._pending.take_refused():
                yield refused
        for refused in self._pending.take_refused():
            yield refused
        if self._source_error:
            raise self._source_error

    async def _wait_for_work(self, *, has_more: bool) -> tuple[pb.ClassifyListingsRequest | None, bool]:
        """Return the listing to send again, if any, and whether a new one is to be taken; neither: all is sent."""
        async with self._condition:
            while True:
                if retry := self._pending.take_retry():
                    return retry, False
                if has_more and len(self._pending) < MAX_PENDING:
                    return None, True
                if not has_more and not self._pending:
                    return None, False
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._condition.wait(), self._pending.compute_wait_s())

    async def _take_next(self) -> tuple[pb.ClassifyListingsRequest | None, bool]:
        """Return the request of the next listing, if it is sent, and whether the source has more."""
        try:
            return self._pending.add(await anext(self._source)), True
        except StopAsyncIteration:
            return None, False
        except Exception as error:
            self._source_error = error
            return None, False


async def _iterate(
    listings: Iterable[ListingToClassify] | AsyncIterable[ListingToClassify],
) -> AsyncIterator[ListingToClassify]:
    if isinstance(listings, AsyncIterable):
        async for listing in listings:
            yield listing
    else:
        for listing in listings:
            yield listing
