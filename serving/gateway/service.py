"""The gRPC service: checks a request, decodes its photos, asks the engine once, and decides."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np

from serving.api import responses
from serving.api.limits import MAX_ALTERNATIVES, MAX_LISTING_ID_CHARS, MAX_PHOTOS
from serving.api.status import Refusal, abort
from serving.auth.interceptor import CALLER
from serving.auth.quota import PhotoQuota
from serving.gateway.admission import MAX_WAIT_S, Admission
from serving.gateway.occlusion import GRID_SIZE, NUM_VARIANTS, encode_jpeg, explain
from serving.gateway.shadow import ShadowTraffic
from serving.gateway.streaming import ListingStreams
from serving.inference.engine import EncodedInferenceResult, InferEncoded
from serving.observability import metrics, tracing
from serving.observability.stage_timer import collect_stage_timings, measure_stage
from serving.protocol import listing_vision_pb2 as pb
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.rollout.release import ServedRelease
from serving.rollout.router import Router
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable, PhotoError

if TYPE_CHECKING:
    from serving.gateway.photo_fetch import PhotoFetcher
    from serving.outcomes.writer import Recorder

__all__ = ["SERVICE_NAME", "EarlyRejectionInterceptor", "Gateway"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ListingVisionService"].full_name
CLASSIFY_METHOD = f"/{SERVICE_NAME}/ClassifyListing"
REQUEST_ID_HEADER = "x-request-id"
MAX_REQUEST_ID_CHARS = 100
DEFAULT_ALTERNATIVES = 5
DEFAULT_DEADLINE_S = 30.0
"""For callers that set none."""
RESERVED_BYTES_PER_URI = 8 << 20
"""Held for a photo that is still to be fetched: twice what phones make, half of the limit."""
MIN_DEADLINE_S = 0.005
"""A call with less left is not begun."""
CANARY_DEADLINE_SHARE = 0.4
"""Of the time that a call has: so long a canary may take, and then there is time for the stable release."""
CANARY_FAILURE_MIN_TIMEOUT_S = 0.5
"""A canary that has not answered in less is not to blame: its caller is in a hurry …"""
CANARY_FAILURE_MIN_WAIT_MULTIPLE = 2.0
"""… nor one that had less than so many times what an answer is expected to take: the machine is busy."""
DEFAULT_RETRY_DELAY_S = 0.5
"""Where nothing better is known."""

# How a call ended, where it was no refusal.
OK = "OK"
CANCELLED = "CANCELLED"

_FALLBACK_REASONS = ("TOO_BUSY", "MODEL_UNAVAILABLE", "MODEL_BROKEN", "DEADLINE_TOO_SHORT")
"""Refusals that another release may be without."""


@dataclass
class RequestContext:
    release: ServedRelease
    """Last; the stable release until any is."""


class Gateway(pb_grpc.ListingVisionServiceServicer):
    """A call that is given up, by its caller or by its deadline, is cancelled: what it waits for is not begun."""

    def __init__(
        self,
        router: Router,
        *,
        admission: Admission,
        quotas: PhotoQuota | None = None,
        recorder: "Recorder | None" = None,
        photo_fetcher: "PhotoFetcher | None" = None,
    ) -> None:
        self.router = router
        self._admission = admission
        self._quotas = quotas
        self._recorder = recorder
        self._photo_fetcher = photo_fetcher
        self._explain_lock = asyncio.Lock()
        self.streams = ListingStreams(has_low_priority_capacity=admission.has_low_priority_capacity)
        self.shadow_traffic = ShadowTraffic(
            lambda release, listing_id, contents: self._classify_with_release(
                release, listing_id, contents, DEFAULT_ALTERNATIVES
            ),
            is_idle=admission.is_idle,
            recorder=recorder,
        )

    async def ClassifyListing(
        self,
        request: pb.ClassifyListingRequest,
        context: "grpc.aio.ServicerContext[pb.ClassifyListingRequest, pb.ClassifyListingResponse]",
    ) -> pb.ClassifyListingResponse:
        try:
            return await self._classify_and_record(
                request, _get_deadline_s(context), request_id=_read_request_id(context)
            )
        except Refusal as refusal:
            await abort(context, refusal)

    async def ClassifyListings(
        self,
        requests: AsyncIterator[pb.ClassifyListingsRequest],
        context: "grpc.aio.ServicerContext[pb.ClassifyListingsRequest, pb.ClassifyListingsResponse]",
    ) -> None:
        request_id = _read_request_id(context)

        async def classify(request: pb.ClassifyListingRequest, deadline_s: float) -> pb.ClassifyListingResponse:
            with tracing.span("listing"):
                return await self._classify_and_record(
                    request, min(deadline_s, _get_deadline_s(context)), request_id=request_id
                )

        try:
            await self.streams.serve(requests, classify, context.write)
        except Refusal as refusal:
            await abort(context, refusal)

    async def _classify_and_record(
        self, request: pb.ClassifyListingRequest, deadline_s: float, *, request_id: str
    ) -> pb.ClassifyListingResponse:
        """The answer, counted and logged however it ends.

        Raises:
            Refusal: there is none.
        """
        started_s = time.monotonic()
        result = OK
        request_context = RequestContext(self.router.stable)
        try:
            return await self._classify(request, deadline_s, request_context)
        except Refusal as refusal:
            result = refusal.reason
            raise
        except asyncio.CancelledError:
            result = CANCELLED
            raise
        except Exception as error:
            # Whatever it was, the caller learns that it is our fault and nothing of our insides.
            result = "INTERNAL"
            _log.exception("listing %r failed", request.listing_id[:MAX_LISTING_ID_CHARS])
            raise Refusal(reason="INTERNAL", message="the service failed; this is our fault") from error
        finally:
            seconds = time.monotonic() - started_s
            metrics.CALLS.labels(result, request_context.release.label).inc()
            metrics.CALL_SECONDS.labels(result, request_context.release.label).observe(seconds)
            metrics.PHOTOS_PER_LISTING.observe(len(request.photos))
            tracing.set_attributes(result=result, photos=len(request.photos), release=request_context.release.label)
            _log.info(
                "listing %r: %d photos, %s in %.1f ms",
                request.listing_id[:MAX_LISTING_ID_CHARS],
                len(request.photos),
                result,
                seconds * 1000,
                extra={"request_id": request_id, "caller": CALLER.get()},
            )

    async def ExplainPhoto(
        self,
        request: pb.ExplainPhotoRequest,
        context: "grpc.aio.ServicerContext[pb.ExplainPhotoRequest, pb.ExplainPhotoResponse]",
    ) -> pb.ExplainPhotoResponse:
        deadline_s = _get_deadline_s(context)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._explain(request, deadline_s)
        except TimeoutError:
            await abort(context, _deadline_exceeded(deadline_s))
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
            taxonomies = self.router.taxonomies
            if not self._recorder.record_outcome(request, taxonomies):
                raise Refusal(
                    reason="TOO_BUSY", message="more outcomes wait than can be held; try later", retry_after_s=10.0
                )
        except Refusal as refusal:
            await abort(context, refusal)
        return pb.ReportOutcomeResponse()

    def reject_early(self, deadline_s: float) -> None:
        """Refuse a call before its photos are read, where it is certain that it would be refused after."""
        try:
            if deadline_s < MIN_DEADLINE_S:
                raise _deadline_exceeded(deadline_s)
            self._check_breaker()
            self._admission.reject_early(deadline_s=deadline_s)
        except Refusal as refusal:
            metrics.CALLS.labels(refusal.reason, self.router.stable.label).inc()
            raise

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: "grpc.aio.ServicerContext[pb.GetModelRequest, pb.GetModelResponse]",
    ) -> pb.GetModelResponse:
        return responses.build_model_response(self.router.stable.bundle)

    async def _classify(
        self, request: pb.ClassifyListingRequest, deadline_s: float, request_context: RequestContext
    ) -> pb.ClassifyListingResponse:
        num_alternatives = _validate_request(request)
        if deadline_s < MIN_DEADLINE_S:
            raise _deadline_exceeded(deadline_s)
        self._check_breaker()
        if self._quotas:
            self._quotas.consume(CALLER.get(), len(request.photos))
        uris = {i: photo.uri for i, photo in enumerate(request.photos) if photo.WhichOneof("source") == "uri"}
        self._check_uris(uris)
        num_bytes = sum(len(photo.content) for photo in request.photos) + len(uris) * RESERVED_BYTES_PER_URI
        with self._admission.admit(len(request.photos), num_bytes, deadline_s=deadline_s):
            try:
                async with asyncio.timeout(deadline_s) as limit:
                    with collect_stage_timings() as seconds:
                        found = await self._load_photos(request, uris)
                        contents = [content for content in found if isinstance(content, bytes)]
                        if not contents:
                            raise _no_usable_photo([error for error in found if isinstance(error, PhotoError)])
                        left_s = (limit.when() or 0.0) - asyncio.get_running_loop().time()
                        response = await self._classify_by_traffic_split(
                            request_context, request.listing_id, contents, num_alternatives, min(left_s, MAX_WAIT_S)
                        )
            except TimeoutError:
                raise _deadline_exceeded(deadline_s) from None
        # What follows takes no time of the caller's.
        if shadow := self.router.select_shadow(request.listing_id):
            self.shadow_traffic.submit(shadow, contents, response)
        responses.insert_errors(response, [error if isinstance(error, PhotoError) else None for error in found])
        if self._recorder and request.listing_id:
            # Without room it is dropped and counted: nobody waits for a record.
            self._recorder.record_suggestion(request, response)
        response.stage_times.extend(pb.StageTime(stage=name, duration_ms=1000 * s) for name, s in seconds.items())
        return response

    def _check_uris(self, uris: dict[int, str]) -> None:
        if not uris:
            return
        if self._photo_fetcher is None:
            detail = "this service fetches no photos; send their bytes as content"
            raise Refusal(
                reason="PHOTO_URI_NOT_ALLOWED", message=detail, violations={f"photos[{i}].uri": detail for i in uris}
            )
        self._photo_fetcher.check(uris)

    async def _load_photos(self, request: pb.ClassifyListingRequest, uris: dict[int, str]) -> list[bytes | PhotoError]:
        """Each photo's bytes, or why it could not be fetched."""
        found: list[bytes | PhotoError] = [photo.content for photo in request.photos]
        if uris:
            assert self._photo_fetcher is not None
            with measure_stage("fetch"):
                fetched = await asyncio.gather(*map(self._photo_fetcher.fetch, uris.values()))
            for i, content in zip(uris, fetched, strict=True):
                found[i] = content
        return found

    async def _classify_by_traffic_split(
        self,
        request_context: RequestContext,
        listing_id: str,
        contents: list[bytes],
        num_alternatives: int,
        time_s: float,
    ) -> pb.ClassifyListingResponse:
        """The canary's answer for its share of the listings, else the stable release's: nobody pays for a canary."""
        response = None
        if canary := self.router.select_canary(listing_id):
            request_context.release = canary
            response = await self._classify_with_canary(
                canary, listing_id, contents, num_alternatives, CANARY_DEADLINE_SHARE * time_s
            )
        if response is None:
            request_context.release = self.router.stable
            response = await self._classify_with_release(
                request_context.release, listing_id, contents, num_alternatives
            )
        for photo in response.photos:
            unusable = photo.HasField("error")
            metrics.PHOTOS.labels(responses.from_wire_error_reason(photo.error) if unusable else "ok").inc()
        return response

    async def _classify_with_canary(
        self, canary: ServedRelease, listing_id: str, contents: list[bytes], num_alternatives: int, time_s: float
    ) -> pb.ClassifyListingResponse | None:
        """None: it has none, or not in time."""
        try:
            if canary.breaker.is_open:
                raise _model_unavailable()
            if self._expected_wait_exceeds(time_s):
                raise _deadline_exceeded(time_s)
            async with asyncio.timeout(time_s):
                return await self._classify_with_release(canary, listing_id, contents, num_alternatives)
        except Refusal as refusal:
            if refusal.reason not in _FALLBACK_REASONS:
                raise
            reason = refusal.reason
        except TimeoutError:
            if time_s >= CANARY_FAILURE_MIN_TIMEOUT_S and not self._expected_wait_exceeds(
                time_s / CANARY_FAILURE_MIN_WAIT_MULTIPLE
            ):
                canary.breaker.record_failure()
            reason = "DEADLINE_TOO_SHORT"
        # Whatever it was, it is the canary's fault and not its caller's.
        except Exception:
            _log.exception("the canary %s failed", canary.label)
            canary.breaker.record_failure()
            reason = "INTERNAL"
        metrics.CANARY_FALLBACKS.labels(reason).inc()
        return None

    def _expected_wait_exceeds(self, time_s: float) -> bool:
        """Whether the machine has so much to do that an answer takes longer."""
        return not self._admission.is_idle() and self._admission.estimate_wait_s(0) > time_s

    async def _classify_with_release(
        self, release: ServedRelease, listing_id: str, contents: list[bytes], num_alternatives: int
    ) -> pb.ClassifyListingResponse:
        with release.acquire():
            if infer_encoded := release.engine.infer_encoded:
                errors, logits = await self._infer_encoded(release, contents, infer_encoded)
            else:
                errors, logits = await self._infer_pixels(release, contents)
            with measure_stage("decision"):
                return responses.build_response(
                    release.bundle, errors, logits, listing_id=listing_id, num_alternatives=num_alternatives
                )

    async def _explain(self, request: pb.ExplainPhotoRequest, deadline_s: float) -> pb.ExplainPhotoResponse:
        """Nobody waits for it in an upload: it is begun only where there is ample room, and one at a time."""
        self._check_breaker()
        if self._explain_lock.locked() or not self._admission.has_low_priority_capacity(NUM_VARIANTS):
            raise Refusal(
                reason="TOO_BUSY", message="a photo is explained only where there is time; try later", retry_after_s=1.0
            )
        if self._quotas:
            self._quotas.consume(CALLER.get(), NUM_VARIANTS)
        content = request.photo.content
        async with self._explain_lock:
            with (
                self._admission.admit(NUM_VARIANTS, len(content), deadline_s=deadline_s),
                self.router.stable.acquire() as release,
            ):
                prepared = await release.decoders.prepare(content)
                if prepared.pixels is None:
                    raise _no_usable_photo([prepared.error], field="photo")
                bundle = release.bundle
                found = await self._call_engine(release, explain(release.engine, bundle, prepared.pixels))
        return pb.ExplainPhotoResponse(
            category_id=bundle.taxonomy.leaf_ids[found.leaf],
            category_probability=found.probability,
            row_count=GRID_SIZE,
            column_count=GRID_SIZE,
            importances=found.importances.ravel().tolist(),
            seen=encode_jpeg(prepared.pixels),
        )

    async def _infer_pixels(self, release: ServedRelease, contents: list[bytes]) -> EncodedInferenceResult:
        with measure_stage("decode"):
            if len(contents) == 1:
                prepared = [await release.decoders.prepare(contents[0])]
            else:
                prepared = await asyncio.gather(*map(release.decoders.prepare, contents))
        errors = [photo.error for photo in prepared]
        usable = [photo.pixels for photo in prepared if photo.pixels is not None]
        if not usable:
            raise _no_usable_photo(errors)
        if release.breaker.is_open:  # since photos were decoded
            raise _model_unavailable()
        photos_nhwc = usable[0][None] if len(usable) == 1 else np.stack(usable)
        return EncodedInferenceResult(errors, await self._call_engine(release, release.engine.infer(photos_nhwc)))

    async def _infer_encoded(
        self, release: ServedRelease, contents: list[bytes], infer_encoded: InferEncoded
    ) -> EncodedInferenceResult:
        errors = [responses.find_size_error(content) for content in contents]
        sent = [content for content, error in zip(contents, errors, strict=True) if error is None]
        if not sent:
            raise _no_usable_photo(errors)
        decoded = await self._call_engine(release, infer_encoded(sent))
        found = iter(decoded.errors)
        errors = [error or next(found) for error in errors]
        if all(errors):
            raise _no_usable_photo(errors)
        return EncodedInferenceResult(errors, decoded.logits)

    async def _call_engine(self, release: ServedRelease, call: Coroutine[Any, Any, _T]) -> _T:
        """What the engine answers, its failures told to the breaker and turned into refusals."""
        try:
            result = await call
        except EngineBusy as error:
            raise Refusal(
                reason="TOO_BUSY", message="the model's queue is full; try later", retry_after_s=DEFAULT_RETRY_DELAY_S
            ) from error
        except EngineUnavailable as error:
            release.breaker.record_failure()
            _log.warning("model unavailable: %s", error)
            raise _model_unavailable() from error
        except EngineBroken as error:
            release.breaker.record_failure()
            _log.error("model broken: %s", error)
            raise Refusal(reason="MODEL_BROKEN", message="the model gave no valid answer; this is our fault") from error
        release.breaker.record_success()
        return result

    def _check_breaker(self) -> None:
        if self.router.stable.breaker.is_open:
            raise _model_unavailable()


class EarlyRejectionInterceptor(grpc.aio.ServerInterceptor):
    """Has a gateway that is overloaded refuse calls by their headers, without the cost of reading their photos.

    gRPC reads a unary call's message before it calls the handler, and a streaming call's when the handler asks for it.
    On the wire they are the same, so the unary method is handled as a stream of one message.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method != CLASSIFY_METHOD:
            return handler

        async def handle(requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            try:
                self._gateway.reject_early(_get_deadline_s(context))
            except Refusal as refusal:
                _log.debug("a call is refused unread: %s", refusal.reason)
                await abort(context, refusal)
            async for request in requests:
                return await self._gateway.ClassifyListing(request, context)
            # The caller has gone, or sent no message at all.
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")

        return grpc.stream_unary_rpc_method_handler(handle, handler.request_deserializer, handler.response_serializer)


def _read_request_id(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """The caller's own, from the header `x-request-id`, by which its logs and ours are held together; else empty."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_HEADER and isinstance(value, str):
            return value[:MAX_REQUEST_ID_CHARS]
    return ""


def _get_deadline_s(context: "grpc.aio.ServicerContext[Any, Any]") -> float:
    remaining_s = context.time_remaining()
    return DEFAULT_DEADLINE_S if remaining_s is None else remaining_s


def _no_usable_photo(errors: Sequence[PhotoError | None], *, field: str = "photos[{}]") -> Refusal:
    return Refusal(
        reason="NO_USABLE_PHOTO",
        message=f"none of the {len(errors)} photos can be used; see the field violations",
        violations={
            f"{field.format(i)}.content": f"{error.reason}: {error}"
            for i, error in enumerate(errors)
            if error is not None
        },
    )


def _model_unavailable() -> Refusal:
    return Refusal(
        reason="MODEL_UNAVAILABLE",
        message="the model cannot be reached now; try again",
        retry_after_s=DEFAULT_RETRY_DELAY_S,
    )


def _validate_request(request: pb.ClassifyListingRequest) -> int:
    """The number of alternatives asked for, of a request that is in order."""
    num_photos = len(request.photos)
    if len(request.listing_id) > MAX_LISTING_ID_CHARS:
        detail = f"{len(request.listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}"
        raise Refusal(
            reason="LISTING_ID_TOO_LONG", message=f"listing_id: {detail}; shorten it", violations={"listing_id": detail}
        )
    if num_photos == 0:
        detail = f"give 1 to {MAX_PHOTOS} photos"
        raise Refusal(reason="NO_PHOTOS", message=f"the request has no photos; {detail}", violations={"photos": detail})
    if num_photos > MAX_PHOTOS:
        detail = f"{num_photos} photos exceed the limit of {MAX_PHOTOS}"
        raise Refusal(
            reason="TOO_MANY_PHOTOS",
            message=f"{detail}; send the first {MAX_PHOTOS}",
            violations={"photos": detail},
        )
    if not request.HasField("alternative_count"):
        return DEFAULT_ALTERNATIVES
    if not 0 <= request.alternative_count <= MAX_ALTERNATIVES:
        detail = f"{request.alternative_count} is outside 0..{MAX_ALTERNATIVES}"
        raise Refusal(
            reason="ALTERNATIVE_COUNT_OUT_OF_RANGE",
            message=f"alternative_count: {detail}",
            violations={"alternative_count": detail},
        )
    return request.alternative_count


def _deadline_exceeded(deadline_s: float) -> Refusal:
    return Refusal(
        reason="DEADLINE_TOO_SHORT",
        message=f"no answer within the {deadline_s * 1000:.0f} ms that the call had left; allow more time",
    )
