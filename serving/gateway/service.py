"""The gRPC service. A listing goes one way: validate, admit, route, infer, decide, respond, record."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from listing_vision_client.protocol import reasons_pb2
from serving.api import responses
from serving.api.limits import MAX_LISTING_ID_CHARS
from serving.api.listing_request import ListingRequest, NumberedRequest
from serving.api.status import FieldViolation, Refusal, abort
from serving.api.suggestion_id import SuggestionSigner
from serving.auth.interceptor import CALLER
from serving.auth.quota import PhotoQuota
from serving.gateway.admission import MAX_WAIT_S, Admission
from serving.gateway.canary import CanaryRouting
from serving.gateway.deadline import check_deadline, enforce_deadline, read_deadline_s, seconds_until
from serving.gateway.inference import check_breaker, infer_photos
from serving.gateway.occlusion import PhotoExplainer
from serving.gateway.shadow import ShadowTraffic
from serving.gateway.streaming import ListingStreams
from serving.gateway.validation import (
    ValidListing,
    check_ancestor,
    check_language_code,
    read_request_id,
    validate_listing,
)
from serving.inference.fair_slots import CALLER_KEY
from serving.observability import metrics, tracing
from serving.observability.stage_timer import collect_stage_timings, measure_stage
from serving.rollout.release import ServedRelease
from serving.rollout.router import Router
from vision.errors import PhotoError
from vision.images import EncodedPhoto
from vision.taxonomy import Taxonomy

if TYPE_CHECKING:
    from serving.gateway.photo_fetch import PhotoFetcher
    from serving.outcomes.writer import Recorder

__all__ = ["CANCELLED", "OK", "Gateway"]

_log = logging.getLogger(__name__)

# Results of calls that were not refused.
OK = "OK"
CANCELLED = "CANCELLED"


@dataclass
class RequestContext:
    release: ServedRelease
    """The release that was tried last; the stable one until any is."""


class Gateway(pb_grpc.ListingVisionServiceServicer):
    """A call that its caller cancels, or whose deadline passes, is cancelled: work that waits is not started."""

    def __init__(
        self,
        router: Router,
        *,
        admission: Admission,
        signer: SuggestionSigner,
        quotas: PhotoQuota | None = None,
        recorder: "Recorder | None" = None,
        photo_fetcher: "PhotoFetcher | None" = None,
    ) -> None:
        self.router = router
        self._admission = admission
        self._signer = signer
        self._quotas = quotas
        self._recorder = recorder
        self._photo_fetcher = photo_fetcher
        self._canary_routing = CanaryRouting(router, admission)
        self._explainer = PhotoExplainer(router, admission, quotas, photo_fetcher)
        self.streams = ListingStreams(has_low_priority_capacity=admission.has_low_priority_capacity)
        self.shadow_traffic = ShadowTraffic(
            lambda release, photos, options: _classify_with_release(
                release, photos, fields=[f"photos[{i}]" for i in range(len(photos))], options=options
            ),
            is_idle=admission.is_idle,
            recorder=recorder,
        )

    async def ClassifyListing(
        self,
        request: ListingRequest,
        context: "grpc.aio.ServicerContext[ListingRequest, pb.ClassifyListingResponse]",
    ) -> pb.ClassifyListingResponse:
        try:
            return await self._classify_and_log(request, read_deadline_s(context), request_id=read_request_id(context))
        except Refusal as refusal:
            await abort(context, refusal)

    async def ClassifyListings(
        self,
        requests: AsyncIterator[NumberedRequest],
        context: "grpc.aio.ServicerContext[NumberedRequest, pb.ClassifyListingsResponse]",
    ) -> None:
        request_id = read_request_id(context)

        async def classify(request: ListingRequest, deadline_s: float) -> pb.ClassifyListingResponse:
            with tracing.span("listing"):
                return await self._classify_and_log(
                    request, min(deadline_s, read_deadline_s(context)), request_id=request_id
                )

        try:
            await self.streams.serve(requests, classify, context.write)
        except Refusal as refusal:
            await abort(context, refusal)

    async def ExplainPhoto(
        self,
        request: pb.ExplainPhotoRequest,
        context: "grpc.aio.ServicerContext[pb.ExplainPhotoRequest, pb.ExplainPhotoResponse]",
    ) -> pb.ExplainPhotoResponse:
        try:
            return await self._explainer.explain(request, deadline_s=read_deadline_s(context))
        except Refusal as refusal:
            await abort(context, refusal)

    async def ReportOutcome(
        self,
        request: pb.ReportOutcomeRequest,
        context: "grpc.aio.ServicerContext[pb.ReportOutcomeRequest, pb.ReportOutcomeResponse]",
    ) -> pb.ReportOutcomeResponse:
        try:
            if self._recorder is None:
                raise Refusal(reason="OUTCOMES_NOT_RECORDED", message="this service records no outcomes (--outcomes)")
            if self._quotas:
                self._quotas.consume(f"outcomes of {CALLER.get()}", 1)
            status, claims = self._signer.verify(request.suggestion_id, caller=CALLER.get())
            if not self._recorder.record_outcome(request, status, claims, self.router.taxonomies, caller=CALLER.get()):
                raise Refusal(
                    reason="TOO_BUSY", message="the buffer of outcomes is full; try later", retry_after_s=10.0
                )
        except Refusal as refusal:
            await abort(context, refusal)
        return pb.ReportOutcomeResponse(suggestion_id_status=status)

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: "grpc.aio.ServicerContext[pb.GetModelRequest, pb.GetModelResponse]",
    ) -> pb.GetModelResponse:
        return responses.build_model_response(
            self.router.stable.bundle,
            photo_uris_enabled=self._photo_fetcher is not None,
            outcomes_enabled=self._recorder is not None,
            suggestion_validity_s=self._signer.validity_s,
        )

    async def GetTaxonomy(
        self,
        request: pb.GetTaxonomyRequest,
        context: "grpc.aio.ServicerContext[pb.GetTaxonomyRequest, pb.GetTaxonomyResponse]",
    ) -> pb.GetTaxonomyResponse:
        try:
            check_language_code(request.language_code)
            taxonomy = find_taxonomy(request.taxonomy_version, self.router)
        except Refusal as refusal:
            await abort(context, refusal)
        return responses.build_taxonomy_response(taxonomy, language=request.language_code)

    async def _classify_and_log(
        self, request: ListingRequest, deadline_s: float, *, request_id: str
    ) -> pb.ClassifyListingResponse:
        """Return the response; count and log the call, however it ends.

        Raises:
            Refusal: the call ends with an error.
        """
        started_s = time.monotonic()
        result = OK
        request_context = RequestContext(self.router.stable)
        try:
            response = await self._classify(request, deadline_s, request_context)
            if response.category_path[0].not_prefilled.reason == pb.NOT_PREFILLED_REASON_OUT_OF_SCOPE:
                metrics.OUT_OF_SCOPE.labels(request_context.release.label).inc()
            return response
        except Refusal as refusal:
            result = refusal.reason
            raise
        except asyncio.CancelledError:
            result = CANCELLED
            raise
        except Exception as error:
            # Internal details go to the log, not to the caller.
            result = "INTERNAL"
            _log.exception("listing %r failed", request.fields.listing_id[:MAX_LISTING_ID_CHARS])
            raise Refusal(reason="INTERNAL", message="the service failed; this is our fault") from error
        finally:
            seconds = time.monotonic() - started_s
            metrics.CALLS.labels(result, request_context.release.label).inc()
            metrics.CALL_SECONDS.labels(result, request_context.release.label).observe(seconds)
            metrics.PHOTOS_PER_LISTING.observe(len(request.contents))
            tracing.set_attributes(result=result, photos=len(request.contents), release=request_context.release.label)
            _log.info(
                "listing %r: %d photos, %s in %.1f ms",
                request.fields.listing_id[:MAX_LISTING_ID_CHARS],
                len(request.contents),
                result,
                seconds * 1000,
                extra={"request_id": request_id, "caller": CALLER.get()},
            )

    async def _classify(
        self, request: ListingRequest, deadline_s: float, request_context: RequestContext
    ) -> pb.ClassifyListingResponse:
        check_uris = self._photo_fetcher.check if self._photo_fetcher else None
        listing = validate_listing(request, check_uris=check_uris)
        check_deadline(deadline_s)
        check_breaker(self.router.stable)
        if self._quotas:
            self._quotas.consume(CALLER.get(), listing.num_photos)
        caller = CALLER_KEY.get()
        with self._admission.admit(listing.num_photos, listing.num_bytes, deadline_s=deadline_s, caller=caller):
            async with enforce_deadline(deadline_s) as timeout:
                with collect_stage_timings() as seconds:
                    photos = await self._load_photos(listing)
                    response = await self._route(listing, photos, request_context, time_s=seconds_until(timeout))
        # The caller's time is over: nothing below waits.
        response.stage_times.extend(responses.build_stage_times(seconds))
        response.suggestion_id, uid = self._signer.sign(
            listing_id=response.listing_id, caller=CALLER.get(), model=response.model
        )
        self._record(request, response, photos, uid=uid, rule_version=request_context.release.bundle.rule_version)
        return response

    async def _load_photos(self, listing: ValidListing) -> list[EncodedPhoto | PhotoError]:
        """Return each photo's bytes, or the error of one that could not be fetched."""
        photos: list[EncodedPhoto | PhotoError] = list(listing.contents)
        if listing.uris:
            assert self._photo_fetcher is not None
            with measure_stage("fetch"):
                fetched = await asyncio.gather(*map(self._photo_fetcher.fetch, listing.uris.values()))
            for i, photo in zip(listing.uris, fetched, strict=True):
                photos[i] = photo
        return photos

    async def _route(
        self,
        listing: ValidListing,
        photos: Sequence[EncodedPhoto | PhotoError],
        request_context: RequestContext,
        *,
        time_s: float,
    ) -> pb.ClassifyListingResponse:
        """Classify with the release that serves the listing; note in `request_context` which is tried."""

        async def classify(release: ServedRelease) -> pb.ClassifyListingResponse:
            request_context.release = release
            return await _classify_with_release(release, photos, fields=listing.photo_fields, options=listing.options)

        return await self._canary_routing.route(listing.options.listing_id, classify, time_s=min(time_s, MAX_WAIT_S))

    def _record(
        self,
        request: ListingRequest,
        response: pb.ClassifyListingResponse,
        photos: Sequence[EncodedPhoto | PhotoError],
        *,
        uid: str,
        rule_version: str,
    ) -> None:
        """Count the photos, store the suggestion, and copy the listing to the shadow. Whatever is full drops it."""
        for photo in response.photos:
            is_usable = photo.HasField("recognition")
            metrics.PHOTOS.labels("ok" if is_usable else reasons_pb2.PhotoErrorReason.Name(photo.error.reason)).inc()
        if shadow := self.router.select_shadow(request.fields.listing_id):
            fields = request.fields
            options = responses.ResponseOptions(
                listing_id=fields.listing_id, ancestor_id=fields.ancestor_category_id, num_alternatives=0
            )
            usable = [photo for photo in photos if not isinstance(photo, PhotoError)]
            self.shadow_traffic.submit(shadow, usable, options, response)
        if self._recorder and request.fields.listing_id:
            self._recorder.record_suggestion(request, response, uid=uid, rule_version=rule_version)


def find_taxonomy(version: str, router: Router) -> Taxonomy:
    """Return a loaded taxonomy.

    Args:
        version: empty: that of the stable release.
        router: has the loaded releases.

    Raises:
        Refusal: TAXONOMY_UNKNOWN.
    """
    found = next((one for one in router.taxonomies if version in ("", one.version)), None)
    if found is None:
        serving_version = router.stable.bundle.taxonomy.version
        detail = f"{version[:100]!r} is the version of no loaded release; the serving one has {serving_version!r}"
        raise Refusal(
            reason="TAXONOMY_UNKNOWN",
            message=f"taxonomy_version: {detail}",
            violations=[FieldViolation(field="taxonomy_version", reason="TAXONOMY_UNKNOWN", description=detail)],
            metadata={"serving_version": serving_version},
        )
    return found


async def _classify_with_release(
    release: ServedRelease,
    photos: Sequence[EncodedPhoto | PhotoError],
    *,
    fields: Sequence[str],
    options: responses.ResponseOptions,
) -> pb.ClassifyListingResponse:
    """Infer, decide and build the response with one release, which stays loaded meanwhile.

    Raises:
        Refusal: ANCESTOR_UNKNOWN, or as `infer_photos`.
    """
    check_ancestor(options.ancestor_id, release.bundle.taxonomy)
    with release.acquire():
        result = await infer_photos(release, photos, fields=fields, with_embedding=options.with_embedding)
        with measure_stage("decision"):
            return responses.build_response(release.bundle, result.errors, result.logits, options)
