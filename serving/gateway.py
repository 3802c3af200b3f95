"""The gRPC service: checks a request, decodes its photos, asks the engine once, and decides."""

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from serving import answers
from serving.engines import AsyncEngine
from serving.protocol import listing_vision_pb2 as pb
from serving.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.statuses import Refusal, abort
from vision.bundle import Bundle
from vision.engine import Logits
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable

__all__ = ["SERVICE_NAME", "Gateway"]

_log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ListingVisionService"].full_name
MAX_LISTING_ID_CHARS = 200
MAX_ALTERNATIVES = 20
DEFAULT_ALTERNATIVES = 5
DEFAULT_DEADLINE_S = 30.0
"""For callers that set none."""
LEAST_DEADLINE_S = 0.005
"""A call with less left is not begun."""
MAX_PHOTOS_IN_FLIGHT = 256
"""As many requests as Triton queues: beyond it the gateway refuses, not Triton."""
RETRY_AFTER_S = 0.5


class Gateway(pb_grpc.ListingVisionServiceServicer):
    def __init__(self, bundle: Bundle, engine: AsyncEngine) -> None:
        self.bundle = bundle
        """As it may be used with the engine: where promises were made with another, they are void."""
        self._engine = engine
        self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")
        self._photos_in_flight = 0

    async def ClassifyListing(
        self,
        request: pb.ClassifyListingRequest,
        context: "grpc.aio.ServicerContext[pb.ClassifyListingRequest, pb.ClassifyListingResponse]",
    ) -> pb.ClassifyListingResponse:
        started_s = time.monotonic()
        remaining_s = context.time_remaining()
        outcome = "answered"
        try:
            return await self._classify(request, DEFAULT_DEADLINE_S if remaining_s is None else remaining_s)
        except Refusal as refusal:
            outcome = refusal.reason
            await abort(context, refusal)
        except asyncio.CancelledError:
            outcome = "given up by the caller"
            raise
        except Exception:
            # Whatever it was, the caller learns that it is our fault and nothing of our insides.
            outcome = "INTERNAL"
            _log.exception("listing %r failed", request.listing_id[:MAX_LISTING_ID_CHARS])
            await abort(context, Refusal(reason="INTERNAL", message="the service failed; this is our fault"))
        finally:
            _log.info(
                "listing %r: %d photos, %s in %.1f ms",
                request.listing_id[:MAX_LISTING_ID_CHARS],
                len(request.photos),
                outcome,
                (time.monotonic() - started_s) * 1000,
            )

    async def GetModel(
        self,
        request: pb.GetModelRequest,
        context: "grpc.aio.ServicerContext[pb.GetModelRequest, pb.GetModelResponse]",
    ) -> pb.GetModelResponse:
        return answers.describe(self.bundle)

    def close(self) -> None:
        self._decoders.shutdown(wait=True, cancel_futures=True)

    async def _classify(self, request: pb.ClassifyListingRequest, deadline_s: float) -> pb.ClassifyListingResponse:
        num_alternatives = _check(request)
        num_photos = len(request.photos)
        if deadline_s < LEAST_DEADLINE_S:
            raise _too_late(deadline_s)
        if self._photos_in_flight + num_photos > MAX_PHOTOS_IN_FLIGHT:
            raise Refusal(
                reason="TOO_BUSY",
                message=f"{self._photos_in_flight} photos are in flight of at most {MAX_PHOTOS_IN_FLIGHT}; try later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._photos_in_flight += num_photos
        # A call that is given up goes on to its end behind the shield and counts until then: what Triton has
        # queued stays queued, and cancelling it would endanger Triton (see TritonEngine).
        work = asyncio.create_task(self._answer(request, num_alternatives))
        work.add_done_callback(lambda done: self._end(done, num_photos))
        try:
            return await asyncio.wait_for(asyncio.shield(work), deadline_s)
        except TimeoutError:
            raise _too_late(deadline_s) from None

    def _end(self, work: "asyncio.Task[pb.ClassifyListingResponse]", num_photos: int) -> None:
        self._photos_in_flight -= num_photos
        if not work.cancelled() and work.exception() is not None:
            _log.debug("work ended with %r", work.exception())

    async def _answer(self, request: pb.ClassifyListingRequest, num_alternatives: int) -> pb.ClassifyListingResponse:
        loop = asyncio.get_running_loop()
        prepared = await asyncio.gather(
            *(
                loop.run_in_executor(self._decoders, answers.prepare, photo.content, self.bundle)
                for photo in request.photos
            )
        )
        usable = [photo.pixels for photo in prepared if photo.pixels is not None]
        if not usable:
            errors = {f"photos[{i}].content": photo.error for i, photo in enumerate(prepared) if photo.error}
            raise Refusal(
                reason="NO_USABLE_PHOTO",
                message=f"none of the {len(prepared)} photos can be used; see the field violations",
                violations={name: f"{error.reason}: {error}" for name, error in errors.items()},
            )
        logits = await self._infer(np.stack(usable))
        return answers.answer(
            self.bundle, prepared, logits, listing_id=request.listing_id, num_alternatives=num_alternatives
        )

    async def _infer(self, photos_nhwc: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Logits:
        try:
            return await self._engine.infer(photos_nhwc)
        except EngineBusy as error:
            raise Refusal(
                reason="TOO_BUSY", message="the model's queue is full; try later", retry_after_s=RETRY_AFTER_S
            ) from error
        except EngineUnavailable as error:
            _log.warning("model unavailable: %s", error)
            raise Refusal(
                reason="MODEL_UNAVAILABLE",
                message="the model cannot be reached now; try again",
                retry_after_s=RETRY_AFTER_S,
            ) from error
        except EngineBroken as error:
            _log.exception("model broken")
            raise Refusal(reason="MODEL_BROKEN", message="the model gave no valid answer; this is our fault") from error


def _check(request: pb.ClassifyListingRequest) -> int:
    """The number of alternatives asked for, of a request that is in order."""
    num_photos = len(request.photos)
    if len(request.listing_id) > MAX_LISTING_ID_CHARS:
        said = f"{len(request.listing_id)} characters exceed the limit of {MAX_LISTING_ID_CHARS}"
        raise Refusal(
            reason="LISTING_ID_TOO_LONG", message=f"listing_id: {said}; shorten it", violations={"listing_id": said}
        )
    if num_photos == 0:
        said = f"give 1 to {answers.MAX_PHOTOS} photos"
        raise Refusal(reason="NO_PHOTOS", message=f"the request has no photos; {said}", violations={"photos": said})
    if num_photos > answers.MAX_PHOTOS:
        said = f"{num_photos} photos exceed the limit of {answers.MAX_PHOTOS}"
        raise Refusal(
            reason="TOO_MANY_PHOTOS",
            message=f"{said}; send the first {answers.MAX_PHOTOS}",
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
