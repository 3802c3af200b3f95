"""The client for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from listing_vision_client import results
from listing_vision_client.channel import (
    SERVICE_NAME,
    Access,
    Address,
    CallHook,
    ChannelOptions,
    build_options,
    build_target,
)
from listing_vision_client.convert import from_message
from listing_vision_client.enums import ExplanationTarget, FormTreatment
from listing_vision_client.errors import choose_retry_delay_s, convert_rpc_error
from listing_vision_client.limits import DEFAULT_TIMEOUT_S, EXPLAIN_TIMEOUT_S
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from listing_vision_client.requests import (
    BrandChoice,
    ListingToClassify,
    PhotoSource,
    build_classify_request,
    build_explain_request,
    build_outcome_request,
)
from listing_vision_client.stream import ListingResult
from listing_vision_client.stream_aio import AsyncStreamedListings

__all__ = ["AsyncListingVisionClient"]

_T = TypeVar("_T")


class AsyncListingVisionClient:
    """Client for asyncio; create it inside the running loop. Close it, or use it in an `async with`.

    Photos that are paths are read in the loop: read files yourself where they may be slow.
    """

    def __init__(
        self,
        address: Address,
        access: Access | None = None,
        *,
        channel_options: ChannelOptions = (),
        num_busy_retries: int = 0,
        call_hook: CallHook | None = None,
    ) -> None:
        """As `ListingVisionClient`."""
        access = access or Access()
        self._metadata = access.metadata
        self._num_busy_retries = num_busy_retries
        self._hook = call_hook or (lambda _: nullcontext(()))
        target = build_target(address)
        options = build_options(target, channel_options)
        self._channel = (
            grpc.aio.secure_channel(target, access.tls.create_credentials(), options=options)
            if access.tls
            else grpc.aio.insecure_channel(target, options=options)
        )
        self._stub = pb_grpc.ListingVisionServiceStub(self._channel)

    async def classify(
        self,
        photos: Sequence[PhotoSource],
        *,
        listing_id: str = "",
        num_alternatives: int | None = None,
        language_code: str = "",
        include_embedding: bool = False,
        ancestor_category_id: str = "",
        hidden: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> results.ListingSuggestion:
        """As `ListingVisionClient.classify`."""
        listing = ListingToClassify(
            photos,
            listing_id=listing_id,
            num_alternatives=num_alternatives,
            language_code=language_code,
            include_embedding=include_embedding,
            ancestor_category_id=ancestor_category_id,
            hidden=hidden,
        )
        return await self._call(
            "ClassifyListing", build_classify_request(listing), results.ListingSuggestion, timeout_s
        )

    async def classify_stream(
        self,
        listings: Iterable[ListingToClassify] | AsyncIterable[ListingToClassify],
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[ListingResult]:
        """As `ListingVisionClient.classify_stream`; to stop early, close the iterator (`contextlib.aclosing`)."""
        streamed = AsyncStreamedListings(listings)
        with self._hook(f"/{SERVICE_NAME}/ClassifyListings") as headers:
            metadata = [*self._metadata, *headers]
            responses = self._stub.ClassifyListings(streamed.iter_requests(), timeout=timeout_s, metadata=metadata)
        try:
            async for result in streamed.iter_results(responses):
                yield result
        except grpc.aio.AioRpcError as error:
            raise convert_rpc_error(error) from error
        finally:
            responses.cancel()

    async def explain(
        self,
        photo: PhotoSource,
        *,
        target: ExplanationTarget = ExplanationTarget.CATEGORY,
        language_code: str = "",
        timeout_s: float = EXPLAIN_TIMEOUT_S,
    ) -> results.Explanation:
        """As `ListingVisionClient.explain`."""
        request = build_explain_request(photo, target=target, language_code=language_code)
        return await self._call("ExplainPhoto", request, results.Explanation, timeout_s)

    async def report_outcome(
        self,
        *,
        suggestion_id: str = "",
        listing_id: str = "",
        taxonomy_version: str = "",
        category_id: str | None = None,
        brand: BrandChoice | None = None,
        category_treatment: FormTreatment = FormTreatment.UNSPECIFIED,
        brand_treatment: FormTreatment = FormTreatment.UNSPECIFIED,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> results.OutcomeReceipt:
        """As `ListingVisionClient.report_outcome`."""
        request = build_outcome_request(
            suggestion_id=suggestion_id,
            listing_id=listing_id,
            taxonomy_version=taxonomy_version,
            category_id=category_id,
            brand=brand,
            category_treatment=category_treatment,
            brand_treatment=brand_treatment,
        )
        return await self._call("ReportOutcome", request, results.OutcomeReceipt, timeout_s)

    async def get_model(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> results.ServingModel:
        """As `ListingVisionClient.get_model`."""
        return await self._call("GetModel", pb.GetModelRequest(), results.ServingModel, timeout_s)

    async def get_taxonomy(
        self, *, taxonomy_version: str = "", language_code: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> results.Taxonomy:
        """As `ListingVisionClient.get_taxonomy`."""
        request = pb.GetTaxonomyRequest(taxonomy_version=taxonomy_version, language_code=language_code)
        return await self._call("GetTaxonomy", request, results.Taxonomy, timeout_s)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: str, request: Message, kind: type[_T], timeout_s: float) -> _T:
        deadline_s, num_retries_left = time.monotonic() + timeout_s, self._num_busy_retries
        while True:
            try:
                with self._hook(f"/{SERVICE_NAME}/{method}") as headers:
                    response = await getattr(self._stub, method)(
                        request, timeout=deadline_s - time.monotonic(), metadata=[*self._metadata, *headers]
                    )
                return from_message(kind, response)
            except grpc.aio.AioRpcError as error:
                failed = convert_rpc_error(error)
                delay_s = choose_retry_delay_s(
                    failed, num_retries_left=num_retries_left, time_left_s=deadline_s - time.monotonic()
                )
                if delay_s is None:
                    raise failed from error
            num_retries_left -= 1
            await asyncio.sleep(delay_s)
