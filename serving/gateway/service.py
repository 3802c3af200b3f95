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
from serving.api.status import Refusal, abort
from serving.auth.interceptor import CALLER, Quotas
from serving.gateway.admission import MAX_WAIT_S, Admission
from serving.gateway.occlusion import GRID, NUM_PHOTOS, explain, seen_jpeg
from serving.gateway.shadow import Shadows
from serving.gateway.streaming import ListingStreams
from serving.inference.triton import Decoded, InferEncoded
from serving.observability import metrics, tracing
from serving.observability.stage_timer import stage, stages_noted
from serving.protocol import listing_vision_pb2 as pb
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.rollout.release import ServedRelease
from serving.rollout.router import Routing
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable, PhotoError

if TYPE_CHECKING:
    from serving.gateway.photo_fetch import PhotoUris
    from serving.outcomes.writer import Recorder

__all__ = ["SERVICE_NAME", "Gateway", "RefuseUnread"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ListingVisionService"].full_name
CLASSIFY_METHOD = f"/{SERVICE_NAME}/ClassifyListing"
REQUEST_ID_HEADER = "x-request-id"
MAX_REQUEST_ID_CHARS = 100
MAX_LISTING_ID_CHARS = 200
MAX_ALTERNATIVES = 20
DEFAULT_ALTERNATIVES = 5
DEFAULT_DEADLINE_S = 30.0
"""For callers that set none."""
BYTES_FOR_URI = 8 << 20
"""Held for a photo that is still to be fetched: twice what phones make, half of the limit."""
LEAST_DEADLINE_S = 0.005
"""A call with less left is not begun."""
CANARY_SHARE_OF_TIME = 0.4
"""Of the time that a call has: so long a canary may take, and then there is time for the stable release."""
CANARY_FAIR_TIME_S = 0.5
"""A canary that has not answered in less is not to blame: its caller is in a hurry …"""
CANARY_FAIR_TIMES = 2.0
"""… nor one that had less than so many times what an answer is expected to take: the machine is busy."""
RETRY_AFTER_S = 0.5
"""Where nothing better is known."""

# How a call ended, where it was no refusal.
OK = "OK"
CANCELLED = "CANCELLED"

_OF_A_RELEASE = ("TOO_BUSY", "MODEL_UNAVAILABLE", "MODEL_BROKEN", "DEADLINE_TOO_SHORT")
"""Refusals that another release may be without."""


@dataclass
class _Call:
    asked: ServedRelease
    """Last; the stable release until any is."""


class Gateway(pb_grpc.ListingVisionServiceServicer):
    """A call that is given up, by its caller or by its deadline, is cancelled: what it waits for is not begun."""

    def __init__(
        self,
        routing: Routing,
        *,
        admission: Admission,
        quotas: Quotas | None = None,
        recorder: "Recorder | None" = None,
        photo_uris: "PhotoUris | None" = None,
    ) -> None:
        self.routing = routing
        self._admission = admission
        self._quotas = quotas
        self._recorder = recorder
        self._photo_uris = photo_uris
        self._explaining = asyncio.Lock()
        self.streams = ListingStreams(has_ample_room=admission.has_ample_room)
        self.shadows = Shadows(
            lambda release, listing_id, contents: self._answer(release, listing_id, contents, DEFAULT_ALTERNATIVES),
            has_time=admission.has_time_to_spare,
            recorder=recorder,
        )

    async def ClassifyListing(
        self,
        request: pb.ClassifyListingRequest,
        context: "grpc.aio.ServicerContext[pb.ClassifyListingRequest, pb.ClassifyListingResponse]",
    ) -> pb.ClassifyListingResponse:
        try:
            return await self._told(request, _deadline_s(context), request_id=_request_id(context))
        except Refusal as refusal:
            await abort(context, refusal)

    async def ClassifyListings(
        self,
        requests: AsyncIterator[pb.ClassifyListingsRequest],
        context: "grpc.aio.ServicerContext[pb.ClassifyListingsRequest, pb.ClassifyListingsResponse]",
    ) -> None:
        request_id = _request_id(context)

        async def answer(request: pb.ClassifyListingRequest, deadline_s: float) -> pb.ClassifyListingResponse:
            with tracing.span("listing"):
                return await self._told(request, min(deadline_s, _deadline_s(context)), request_id=request_id)

        try:
            await self.streams.serve(requests, answer, context.write)
        except Refusal as refusal:
            await abort(context, refusal)

    async def _told(
        self, request: pb.ClassifyListingRequest, deadline_s: float, *, request_id: str
    ) -> pb.ClassifyListingResponse:
        """The answer, counted and logged however it ends.

        Raises:
            Refusal: there is none.
        """
        started_s = time.monotonic()
        result = OK
        call = _Call(self.routing.stable)
        try:
            return await self._classify(request, deadline_s, call)
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
            metrics.CALLS.labels(result, call.asked.label).inc()
            metrics.CALL_SECONDS.labels(result, call.asked.label).observe(seconds)
            metrics.PHOTOS_PER_LISTING.observe(len(request.photos))
            tracing.note(result=result, photos=len(request.photos), release=call.asked.label)
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
        deadline_s = _deadline_s(context)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._explain(request, deadline_s)
        except TimeoutError:
            await abort(context, _too_late(deadline_s))
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
            taxonomies = self.routing.taxonomies
            if not self._recorder.record_outcome(request, taxonomies, max_listing_id_chars=MAX_LISTING_ID_CHARS):
                raise Refusal(
                    reason="TOO_BUSY", message="more outcomes wait than can be held; try later", retry_after_s=10.0
                )
        except Refusal as refusal:
            await abort(context, refusal)
        return pb.ReportOutcomeResponse()

    def refuse_unread(self, deadline_s: float) -> None:
        """Refuse a call before its photos are read, where it is certain that it would be refused after."""
        try:
            if deadline_s < LEAST_DEADLINE_S:
                raise _too_late(deadline_s)
            self._refuse_while_open()
            self._admission.refuse_unread(deadline_s=deadline_s)
        except Refusal as refusal:
            metrics.CALLS.labels(refusal.reason, self.routing.stable.label).inc()
            raise

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: "grpc.aio.ServicerContext[pb.GetModelRequest, pb.GetModelResponse]",
    ) -> pb.GetModelResponse:
        return responses.describe(self.routing.stable.bundle)

    async def _classify(
        self, request: pb.ClassifyListingRequest, deadline_s: float, call: _Call
    ) -> pb.ClassifyListingResponse:
        num_alternatives = _check(request)
        if deadline_s < LEAST_DEADLINE_S:
            raise _too_late(deadline_s)
        self._refuse_while_open()
        if self._quotas:
            self._quotas.take(CALLER.get(), len(request.photos))
        uris = {i: photo.uri for i, photo in enumerate(request.photos) if photo.WhichOneof("source") == "uri"}
        self._check_uris(uris)
        num_bytes = sum(len(photo.content) for photo in request.photos) + len(uris) * BYTES_FOR_URI
        with self._admission.admit(len(request.photos), num_bytes, deadline_s=deadline_s):
            try:
                async with asyncio.timeout(deadline_s) as limit:
                    with stages_noted() as seconds:
                        found = await self._contents(request, uris)
                        contents = [content for content in found if isinstance(content, bytes)]
                        if not contents:
                            raise _none_usable([error for error in found if isinstance(error, PhotoError)])
                        left_s = (limit.when() or 0.0) - asyncio.get_running_loop().time()
                        answer = await self._answer_by_routes(
                            call, request.listing_id, contents, num_alternatives, min(left_s, MAX_WAIT_S)
                        )
            except TimeoutError:
                raise _too_late(deadline_s) from None
        # What follows takes no time of the caller's.
        if shadow := self.routing.shadow_for(request.listing_id):
            self.shadows.offer(shadow, contents, answer)
        responses.insert_errors(answer, [error if isinstance(error, PhotoError) else None for error in found])
        if self._recorder and request.listing_id:
            # Without room it is dropped and counted: nobody waits for a record.
            self._recorder.record_suggestion(request, answer)
        answer.stage_times.extend(pb.StageTime(stage=name, duration_ms=1000 * s) for name, s in seconds.items())
        return answer

    def _check_uris(self, uris: dict[int, str]) -> None:
        if not uris:
            return
        if self._photo_uris is None:
            said = "this service fetches no photos; send their bytes as content"
            raise Refusal(
                reason="PHOTO_URI_NOT_ALLOWED", message=said, violations={f"photos[{i}].uri": said for i in uris}
            )
        self._photo_uris.check(uris)

    async def _contents(self, request: pb.ClassifyListingRequest, uris: dict[int, str]) -> list[bytes | PhotoError]:
        """Each photo's bytes, or why it could not be fetched."""
        found: list[bytes | PhotoError] = [photo.content for photo in request.photos]
        if uris:
            assert self._photo_uris is not None
            with stage("fetch"):
                fetched = await asyncio.gather(*map(self._photo_uris.fetch, uris.values()))
            for i, content in zip(uris, fetched, strict=True):
                found[i] = content
        return found

    async def _answer_by_routes(
        self, call: _Call, listing_id: str, contents: list[bytes], num_alternatives: int, time_s: float
    ) -> pb.ClassifyListingResponse:
        """The canary's answer for its share of the listings, else the stable release's: nobody pays for a canary."""
        answer = None
        if canary := self.routing.canary_for(listing_id):
            call.asked = canary
            answer = await self._answer_of_canary(
                canary, listing_id, contents, num_alternatives, CANARY_SHARE_OF_TIME * time_s
            )
        if answer is None:
            call.asked = self.routing.stable
            answer = await self._answer(call.asked, listing_id, contents, num_alternatives)
        for photo in answer.photos:
            unusable = photo.HasField("error")
            metrics.PHOTOS.labels(responses.error_name(photo.error) if unusable else "used").inc()
        return answer

    async def _answer_of_canary(
        self, canary: ServedRelease, listing_id: str, contents: list[bytes], num_alternatives: int, time_s: float
    ) -> pb.ClassifyListingResponse | None:
        """None: it has none, or not in time."""
        try:
            if canary.breaker.is_open:
                raise _unavailable()
            if self._is_busy_for(time_s):
                raise _too_late(time_s)
            async with asyncio.timeout(time_s):
                return await self._answer(canary, listing_id, contents, num_alternatives)
        except Refusal as refusal:
            if refusal.reason not in _OF_A_RELEASE:
                raise
            reason = refusal.reason
        except TimeoutError:
            if time_s >= CANARY_FAIR_TIME_S and not self._is_busy_for(time_s / CANARY_FAIR_TIMES):
                canary.breaker.failed()
            reason = "DEADLINE_TOO_SHORT"
        # Whatever it was, it is the canary's fault and not its caller's.
        except Exception:
            _log.exception("the canary %s failed", canary.label)
            canary.breaker.failed()
            reason = "INTERNAL"
        metrics.CANARY_FALLBACKS.labels(reason).inc()
        return None

    def _is_busy_for(self, time_s: float) -> bool:
        """Whether the machine has so much to do that an answer takes longer."""
        return not self._admission.has_time_to_spare() and self._admission.expected_s(0) > time_s

    async def _answer(
        self, release: ServedRelease, listing_id: str, contents: list[bytes], num_alternatives: int
    ) -> pb.ClassifyListingResponse:
        with release.held():
            if infer_encoded := release.engine.infer_encoded:
                errors, logits = await self._decoded_by_engine(release, contents, infer_encoded)
            else:
                errors, logits = await self._decoded_here(release, contents)
            with stage("decision"):
                return responses.answer(
                    release.bundle, errors, logits, listing_id=listing_id, num_alternatives=num_alternatives
                )

    async def _explain(self, request: pb.ExplainPhotoRequest, deadline_s: float) -> pb.ExplainPhotoResponse:
        """Nobody waits for it in an upload: it is begun only where there is ample room, and one at a time."""
        self._refuse_while_open()
        if self._explaining.locked() or not self._admission.has_ample_room(NUM_PHOTOS):
            raise Refusal(
                reason="TOO_BUSY", message="a photo is explained only where there is time; try later", retry_after_s=1.0
            )
        if self._quotas:
            self._quotas.take(CALLER.get(), NUM_PHOTOS)
        content = request.photo.content
        async with self._explaining:
            with (
                self._admission.admit(NUM_PHOTOS, len(content), deadline_s=deadline_s),
                self.routing.stable.held() as release,
            ):
                prepared = await release.decoders.prepare(content)
                if prepared.pixels is None:
                    raise _none_usable([prepared.error], field="photo")
                bundle = release.bundle
                found = await self._asked(release, explain(release.engine, bundle, prepared.pixels))
        return pb.ExplainPhotoResponse(
            category_id=bundle.taxonomy.leaf_ids[found.leaf],
            category_probability=found.probability,
            row_count=GRID,
            column_count=GRID,
            importances=found.importances.ravel().tolist(),
            seen=seen_jpeg(prepared.pixels),
        )

    async def _decoded_here(self, release: ServedRelease, contents: list[bytes]) -> Decoded:
        with stage("decode"):
            if len(contents) == 1:
                prepared = [await release.decoders.prepare(contents[0])]
            else:
                prepared = await asyncio.gather(*map(release.decoders.prepare, contents))
        errors = [photo.error for photo in prepared]
        usable = [photo.pixels for photo in prepared if photo.pixels is not None]
        if not usable:
            raise _none_usable(errors)
        if release.breaker.is_open:  # since photos were decoded
            raise _unavailable()
        photos_nhwc = usable[0][None] if len(usable) == 1 else np.stack(usable)
        return Decoded(errors, await self._asked(release, release.engine.infer(photos_nhwc)))

    async def _decoded_by_engine(
        self, release: ServedRelease, contents: list[bytes], infer_encoded: InferEncoded
    ) -> Decoded:
        errors = [responses.refused_unread(content) for content in contents]
        sent = [content for content, error in zip(contents, errors, strict=True) if error is None]
        if not sent:
            raise _none_usable(errors)
        decoded = await self._asked(release, infer_encoded(sent))
        found = iter(decoded.errors)
        errors = [error or next(found) for error in errors]
        if all(errors):
            raise _none_usable(errors)
        return Decoded(errors, decoded.logits)

    async def _asked(self, release: ServedRelease, call: Coroutine[Any, Any, _T]) -> _T:
        """What the engine answers, its failures told to the breaker and turned into refusals."""
        try:
            answered = await call
        except EngineBusy as error:
            raise Refusal(
                reason="TOO_BUSY", message="the model's queue is full; try later", retry_after_s=RETRY_AFTER_S
            ) from error
        except EngineUnavailable as error:
            release.breaker.failed()
            _log.warning("model unavailable: %s", error)
            raise _unavailable() from error
        except EngineBroken as error:
            release.breaker.failed()
            _log.error("model broken: %s", error)
            raise Refusal(reason="MODEL_BROKEN", message="the model gave no valid answer; this is our fault") from error
        release.breaker.succeeded()
        return answered

    def _refuse_while_open(self) -> None:
        if self.routing.stable.breaker.is_open:
            raise _unavailable()


class RefuseUnread(grpc.aio.ServerInterceptor):
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

        async def answer(requests: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            try:
                self._gateway.refuse_unread(_deadline_s(context))
            except Refusal as refusal:
                _log.debug("a call is refused unread: %s", refusal.reason)
                await abort(context, refusal)
            async for request in requests:
                return await self._gateway.ClassifyListing(request, context)
            # The caller has gone, or sent no message at all.
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request message")

        return grpc.stream_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


def _request_id(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """The caller's own, from the header `x-request-id`, by which its logs and ours are held together; else empty."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID_HEADER and isinstance(value, str):
            return value[:MAX_REQUEST_ID_CHARS]
    return ""


def _deadline_s(context: "grpc.aio.ServicerContext[Any, Any]") -> float:
    remaining_s = context.time_remaining()
    return DEFAULT_DEADLINE_S if remaining_s is None else remaining_s


def _none_usable(errors: Sequence[PhotoError | None], *, field: str = "photos[{}]") -> Refusal:
    return Refusal(
        reason="NO_USABLE_PHOTO",
        message=f"none of the {len(errors)} photos can be used; see the field violations",
        violations={
            f"{field.format(i)}.content": f"{error.reason}: {error}"
            for i, error in enumerate(errors)
            if error is not None
        },
    )


def _unavailable() -> Refusal:
    return Refusal(
        reason="MODEL_UNAVAILABLE", message="the model cannot be reached now; try again", retry_after_s=RETRY_AFTER_S
    )


def _check(request: pb.ClassifyListingRequest) -> int:
    """The number of alternatives asked for, of a request that is in order."""
    num_photos = len(request.photos)
    if len(request.listing_id) > MAX_LISTING_ID_CHARS:
        said = f"{len(request.listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}"
        raise Refusal(
            reason="LISTING_ID_TOO_LONG", message=f"listing_id: {said}; shorten it", violations={"listing_id": said}
        )
    if num_photos == 0:
        said = f"give 1 to {responses.MAX_PHOTOS} photos"
        raise Refusal(reason="NO_PHOTOS", message=f"the request has no photos; {said}", violations={"photos": said})
    if num_photos > responses.MAX_PHOTOS:
        said = f"{num_photos} photos exceed the limit of {responses.MAX_PHOTOS}"
        raise Refusal(
            reason="TOO_MANY_PHOTOS",
            message=f"{said}; send the first {responses.MAX_PHOTOS}",
            violations={"photos": said},
        )
    if not request.HasField("alternative_count"):
        return DEFAULT_ALTERNATIVES
    if not 0 <= request.alternative_count <= MAX_ALTERNATIVES:
        said = f"{request.alternative_count} is outside 0..{MAX_ALTERNATIVES}"
        raise Refusal(
            reason="ALTERNATIVE_COUNT_OUT_OF_RANGE",
            message=f"alternative_count: {said}",
            violations={"alternative_count": said},
        )
    return request.alternative_count


def _too_late(deadline_s: float) -> Refusal:
    return Refusal(
        reason="DEADLINE_TOO_SHORT",
        message=f"no answer within the {deadline_s * 1000:.0f} ms that the call had left; allow more time",
    )
