"""The blocking client: one long-lived channel to all gateways, limits and retries set, errors with their reason."""

import time
from collections.abc import Iterable, Iterator, Sequence
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
from listing_vision_client.stream import ListingResult, StreamedListings

__all__ = ["ListingVisionClient"]

_T = TypeVar("_T")


class ListingVisionClient:
    """Blocking client, safe to share between threads. Close it, or use it in a `with`.

    All calls raise CallFailed, with the service's reason. What was UNAVAILABLE is retried twice on another gateway,
    within the call's time and a budget that all calls share.
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
        """Args:
        address: one or several; calls go round all of them.
        access: None: plain text and no token.
        channel_options: gRPC's options; they replace the client's own of the same name.
        num_busy_retries: how often a call that was refused as TOO_BUSY or QUOTA_EXCEEDED is repeated after the delay
            that the service names. 0: never, for calls that a person waits for.
        call_hook: opened around each attempt of a call, and around the start of a stream; yields headers to send.

        Raises:
            OSError: a file of `access` cannot be read.
            ValueError: the addresses cannot be called together.
        """
        access = access or Access()
        self._metadata = access.metadata
        self._num_busy_retries = num_busy_retries
        self._hook = call_hook or (lambda _: nullcontext(()))
        target = build_target(address)
        options = build_options(target, channel_options)
        self._channel = (
            grpc.secure_channel(target, access.tls.create_credentials(), options=options)
            if access.tls
            else grpc.insecure_channel(target, options=options)
        )
        self._stub = pb_grpc.ListingVisionServiceStub(self._channel)

    def classify(
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
        """Return the suggestion for one listing's photos.

        Args:
            photos: bytes of files, paths, or URIs from which the service fetches.
            num_alternatives: None: 5.
            language_code: of the names, such as `ja`; empty: English.
            hidden: the seller is shown nothing of the response; see `ListingToClassify`.
        """
        listing = ListingToClassify(
            photos,
            listing_id=listing_id,
            num_alternatives=num_alternatives,
            language_code=language_code,
            include_embedding=include_embedding,
            ancestor_category_id=ancestor_category_id,
            hidden=hidden,
        )
        request = build_classify_request(listing)
        return self._call("ClassifyListing", request, results.ListingSuggestion, timeout_s)

    def classify_stream(
        self, listings: Iterable[ListingToClassify], *, timeout_s: float | None = None
    ) -> Iterator[ListingResult]:
        """Yield the result of each listing as soon as it is known, in any order; both sides are lazy.

        Listings are taken as fast as the service reads them. A temporary refusal is retried after the delay
        that the service names, five times at most; a final refusal is yielded as an error.

        Args:
            listings: to classify.
            timeout_s: timeout of the whole stream; None: none.

        Raises:
            CallFailed: the stream itself failed; listings without a result may be sent on another one.
        """
        streamed = StreamedListings(listings)
        # Closed at once: it would else stay open while the caller does something else.
        with self._hook(f"/{SERVICE_NAME}/ClassifyListings") as headers:
            metadata = [*self._metadata, *headers]
            responses = self._stub.ClassifyListings(streamed.iter_requests(), timeout=timeout_s, metadata=metadata)
        try:
            yield from streamed.iter_results(responses)
        except grpc.RpcError as error:
            raise convert_rpc_error(error) from error
        finally:
            responses.cancel()

    def explain(
        self,
        photo: PhotoSource,
        *,
        target: ExplanationTarget = ExplanationTarget.CATEGORY,
        language_code: str = "",
        timeout_s: float = EXPLAIN_TIMEOUT_S,
    ) -> results.Explanation:
        """Return how much each region of a photo contributes to its most likely category or brand."""
        request = build_explain_request(photo, target=target, language_code=language_code)
        return self._call("ExplainPhoto", request, results.Explanation, timeout_s)

    def report_outcome(
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
        """Record what the seller finally chose."""
        request = build_outcome_request(
            suggestion_id=suggestion_id,
            listing_id=listing_id,
            taxonomy_version=taxonomy_version,
            category_id=category_id,
            brand=brand,
            category_treatment=category_treatment,
            brand_treatment=brand_treatment,
        )
        return self._call("ReportOutcome", request, results.OutcomeReceipt, timeout_s)

    def get_model(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> results.ServingModel:
        """Return the serving model, the limits of requests and the guarantees."""
        return self._call("GetModel", pb.GetModelRequest(), results.ServingModel, timeout_s)

    def get_taxonomy(
        self, *, taxonomy_version: str = "", language_code: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> results.Taxonomy:
        """Return all categories and brands; `taxonomy_version` empty: those of the serving model."""
        request = pb.GetTaxonomyRequest(taxonomy_version=taxonomy_version, language_code=language_code)
        return self._call("GetTaxonomy", request, results.Taxonomy, timeout_s)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, request: Message, kind: type[_T], timeout_s: float) -> _T:
        deadline_s, num_retries_left = time.monotonic() + timeout_s, self._num_busy_retries
        while True:
            try:
                with self._hook(f"/{SERVICE_NAME}/{method}") as headers:
                    response = getattr(self._stub, method)(
                        request, timeout=deadline_s - time.monotonic(), metadata=[*self._metadata, *headers]
                    )
                return from_message(kind, response)
            except grpc.RpcError as error:
                failed = convert_rpc_error(error)
                delay_s = choose_retry_delay_s(
                    failed, num_retries_left=num_retries_left, time_left_s=deadline_s - time.monotonic()
                )
                if delay_s is None:
                    raise failed from error
            num_retries_left -= 1
            time.sleep(delay_s)
