"""Answers from servers that may have live traffic too: a gateway, which decides itself, or a Triton."""

import asyncio
import contextlib
import itertools
import math
import random
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from serving.api.responses import MAX_PHOTOS
from serving.backfill.job import Job, ModelVersions
from serving.backfill.local_engine import BackfillEngine, LogitsEngine, ShardResult
from serving.backfill.output import Failure, build_tables
from serving.backfill.photo_reader import PhotoReader
from serving.backfill.pipeline import WaitTimes
from serving.backfill.plan import ShardPhotos
from serving.client.client import MESSAGE_LIMIT_BYTES, Access, CallFailed, ListingVisionClient
from serving.errors import BackfillError
from serving.gateway.service import MAX_ALTERNATIVES, MAX_LISTING_ID_CHARS
from serving.inference.health import check_golden_photos, wait_for_golden_photos
from serving.inference.triton import TritonEngine
from serving.protocol import listing_vision_pb2 as pb
from vision.bundle import UNKNOWN_BACKEND, Bundle
from vision.engine import Logits
from vision.errors import EngineBusy, EngineUnavailable

__all__ = ["RateLimiter", "create_remote_engine"]

_T = TypeVar("_T")

UNAVAILABLE_TIMEOUT_S = 120.0
"""How long a server may be away, or busy with others, before the job stops."""
CALL_TIMEOUT_S = 10.0
INITIAL_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
MAX_CONCURRENT_LISTINGS = 8
MAX_LISTING_BYTES = MESSAGE_LIMIT_BYTES - (1 << 20)
"""Of a listing's photos together: what a request may hold beside its other fields."""
NUM_DECODERS = 2


class RateLimiter:
    """Lets so many photos a second through, evenly; safe to use from many threads."""

    def __init__(self, photos_per_s: float | None) -> None:
        self._seconds_per_photo = 1 / photos_per_s if photos_per_s else 0.0
        self._lock = threading.Lock()
        self._next_s = 0.0

    def wait(self, num_photos: int, stop: threading.Event) -> None:
        with self._lock:
            now_s = time.monotonic()
            # What was not used is not saved up: live traffic would meet it as a burst.
            begin_s = max(self._next_s, now_s)
            self._next_s = begin_s + num_photos * self._seconds_per_photo
        if begin_s > now_s:
            stop.wait(begin_s - now_s)


def create_remote_engine(
    address: str, bundle: Bundle, *, photos_per_s: float | None, stop: threading.Event, isolate: bool = True
) -> BackfillEngine:
    """An engine that asks the gateway or the Triton at HOST:PORT, whichever it is.

    Raises:
        BackfillError: nobody answers there, or a gateway that serves another model than the bundle.
    """
    with ListingVisionClient(address, Access.from_environment()) as client:
        try:
            described = client.get_model()
        except CallFailed as failed:
            if failed.code == grpc.StatusCode.UNIMPLEMENTED:
                return _create_triton_engine(address, bundle, RateLimiter(photos_per_s), stop=stop, isolate=isolate)
            raise BackfillError(f"--target {address}: {failed}") from failed
    return GatewayEngine(address, bundle, described.model, RateLimiter(photos_per_s), stop=stop)


class GatewayEngine:
    """Sends whole listings; decoding, model and decision are the gateway's."""

    def __init__(
        self, address: str, bundle: Bundle, model: "pb.ModelVersion", limit: RateLimiter, *, stop: threading.Event
    ) -> None:
        self.versions = _to_model_versions(model)
        self.wait_times = WaitTimes()
        self._address = address
        self._limit = limit
        self._stop = stop
        self._timed_out = threading.Event()
        """One listing's patience is at its end, and so is every other's."""
        wanted = ModelVersions.from_bundle(bundle, self.versions.backend)
        for name in ("name", "version", "taxonomy"):
            here, there = getattr(wanted, name), getattr(self.versions, name)
            if here != there:
                raise BackfillError(f"the gateway at {address} serves another model: {name} {there}, --model {here}")
        self._client = ListingVisionClient(address, Access.from_environment())

    def classify(self, job: Job, shards: Iterable[ShardPhotos], reader: PhotoReader) -> Iterator[ShardResult]:
        if job.top_k > MAX_ALTERNATIVES:
            raise BackfillError(f"--top-k {job.top_k}: a gateway answers {MAX_ALTERNATIVES} at most")
        if job.embedding:
            raise BackfillError("--embedding: a gateway answers none; leave it out, or classify without --target")
        with ThreadPoolExecutor(MAX_CONCURRENT_LISTINGS, thread_name_prefix="listing") as pool:
            pending: list[tuple[ShardPhotos, float, list[Future[_ListingResult]]]] = []
            begun: list[Future[_ListingResult]] = []
            try:
                for shard in shards:
                    began_s = time.monotonic()
                    bounds = np.searchsorted(shard.groups, np.arange(len(shard.listing_ids) + 1)).tolist()
                    calls = [
                        pool.submit(self._classify_listing, job, shard, begin, end, reader)
                        for begin, end in itertools.pairwise(bounds)
                    ]
                    pending.append((shard, began_s, calls))
                    begun = [*(call for _, _, some in pending for call in some)]
                    if len(pending) > 1:
                        yield self._collect_shard(job, *pending.pop(0))
                while pending:
                    yield self._collect_shard(job, *pending.pop(0))
            finally:
                for call in begun:
                    call.cancel()

    def close(self) -> None:
        self._client.close()

    def _collect_shard(
        self, job: Job, shard: ShardPhotos, began_s: float, calls: "Sequence[Future[_ListingResult]]"
    ) -> ShardResult:
        answers: dict[int, dict[str, Any]] = {}
        failures: dict[int, Failure] = {}
        for number, call in enumerate(calls):
            answer, failed = call.result()
            failures |= failed
            if answer is not None:
                answers[number] = answer
        return ShardResult(shard, build_tables(job, shard, answers, failures), time.monotonic() - began_s)

    def _classify_listing(
        self, job: Job, shard: ShardPhotos, begin: int, end: int, reader: PhotoReader
    ) -> "_ListingResult":
        began_s = time.monotonic()
        found = [reader.read(shard.photos[photo]) for photo in range(begin, end)]
        self.wait_times.add("read", time.monotonic() - began_s)
        if self._stop.is_set():  # a photo may have failed because it was not tried again
            raise BackfillError("stopped")
        failures = {begin + place: one for place, one in enumerate(found) if isinstance(one, Failure)}
        sent: list[int] = []
        contents: list[bytes] = []
        for place, one in enumerate(found):
            if not isinstance(one, bytes):
                continue
            if len(contents) == MAX_PHOTOS or sum(map(len, contents)) + len(one) > MAX_LISTING_BYTES:
                failures[begin + place] = _PHOTO_NOT_SENT
            else:
                sent.append(begin + place)
                contents.append(one)
        if not contents:
            return None, failures
        try:
            response = self._call_with_retries(
                contents, shard.listing_ids[shard.groups[begin]][:MAX_LISTING_ID_CHARS], job
            )
        except CallFailed as failed:
            if failed.reason != "NO_USABLE_PHOTO":
                raise BackfillError(f"the gateway at {self._address} refuses a listing: {failed}") from failed
            return None, failures | _to_failures(failed, sent)
        if _to_model_versions(response.model) != self.versions:
            raise BackfillError(
                f"the gateway at {self._address} has begun to serve another model, {response.model.version}; "
                "the shards that are done stand, and belong to the old one"
            )
        for photo, result in zip(sent, response.photos, strict=True):
            if result.HasField("error"):
                failures[photo] = _to_failure(result.error)
        return _to_row(response, job), failures

    def _call_with_retries(self, contents: list[bytes], listing_id: str, job: Job) -> "pb.ClassifyListingResponse":
        """Raises CallFailed where trying again is of no use; BackfillError: the patience is at its end."""
        give_up_at_s, backoff_s = math.inf, INITIAL_BACKOFF_S
        while True:
            self._limit.wait(len(contents), self._stop)
            began_s = time.monotonic()
            try:
                return self._client.classify(
                    contents, listing_id=listing_id, num_alternatives=job.top_k, timeout_s=CALL_TIMEOUT_S
                )
            except CallFailed as failed:
                # Without a reason of the service's it is gRPC that finds the message too large.
                too_large = failed.code == grpc.StatusCode.RESOURCE_EXHAUSTED and not failed.reason
                if failed.code not in _RETRYABLE_CODES or too_large:
                    raise
                give_up_at_s = min(give_up_at_s, time.monotonic() + UNAVAILABLE_TIMEOUT_S)
                if self._timed_out.is_set() or self._stop.is_set() or time.monotonic() > give_up_at_s:
                    self._timed_out.set()
                    raise BackfillError(
                        f"the gateway at {self._address} does not answer for {UNAVAILABLE_TIMEOUT_S:g} s: {failed}; "
                        "start the same command again to go on"
                    ) from failed
            finally:
                self.wait_times.add("model", time.monotonic() - began_s)
            # Drawn, so that listings that were refused together do not come back together.
            self._stop.wait(random.uniform(0.5, 1.5) * backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


_PHOTO_NOT_SENT = Failure(
    reason="PHOTO_NOT_SENT",
    message=f"a call takes {MAX_PHOTOS} photos and {MAX_LISTING_BYTES >> 20} MiB; the other photos are used",
)
_ListingResult = tuple[dict[str, Any] | None, dict[int, Failure]]
"""The answer's columns, None where no photo can be used; and what was wrong with photos, by their number."""

_RETRYABLE_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def _to_model_versions(model: "pb.ModelVersion") -> ModelVersions:
    return ModelVersions(
        name=model.name,
        version=model.version,
        taxonomy=model.taxonomy_version,
        calibration=model.calibration_version,
        backend="gateway",
    )


def _to_failure(error: "pb.PhotoError") -> Failure:
    reason = pb.PhotoErrorReason.Name(error.reason).replace("PHOTO_ERROR_REASON_", "PHOTO_", 1)
    return Failure(reason=reason, message=error.message)


def _to_failures(failed: CallFailed, sent: Sequence[int]) -> dict[int, Failure]:
    """Of a call none of whose photos could be used: `photos[2].content` → `PHOTO_TRUNCATED: …`."""
    failures = {}
    for place, photo in enumerate(sent):
        reason, _, message = failed.violations.get(f"photos[{place}].content", "PHOTO_UNREADABLE: ").partition(": ")
        failures[photo] = Failure(reason=reason, message=message)
    return failures


def _to_row(response: "pb.ClassifyListingResponse", job: Job) -> dict[str, Any]:
    path = [
        {
            "id": step.category_id,
            "name": step.name,
            "probability": step.probability,
            "filled": step.outcome == pb.SUGGESTION_OUTCOME_FILL,
        }
        for step in response.category_path
    ]
    brand = response.brand
    kinds: Mapping[int, str] = {pb.BRAND_KIND_BRAND: "brand", pb.BRAND_KIND_NO_BRAND: "no_brand"}
    row: dict[str, Any] = {
        "category_id": path[-1]["id"],
        "category_path": path,
        "filled_category_id": next((step["id"] for step in reversed(path) if step["filled"]), None),
        "brand": {
            "kind": kinds.get(brand.kind, "unknown"),
            "id": brand.brand_id or None,
            "name": brand.name or None,
            "probability": brand.probability,
            "filled": brand.outcome == pb.SUGGESTION_OUTCOME_FILL,
        },
    }
    if job.top_k:
        row["alternatives"] = [{"id": a.category_id, "probability": a.probability} for a in response.alternatives]
    return row


class _EventLoopThread:
    """An event loop on a thread, for the one engine that is asynchronous."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="triton", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _create_triton_engine(
    address: str, bundle: Bundle, limit: RateLimiter, *, stop: threading.Event, isolate: bool
) -> LogitsEngine:
    loop = _EventLoopThread()

    async def connect() -> tuple[TritonEngine, str]:
        # The pipeline decodes: answers are those of pixels, and so are the promises.
        engine = TritonEngine(address, allow_decoding=False)
        await wait_for_golden_photos(engine, bundle)
        return engine, await engine.fetch_backend()

    try:
        engine, backend = loop.run(connect())
    except BaseException as error:
        loop.close()
        if isinstance(error, EngineUnavailable):
            raise BackfillError(f"--target {address}: {error}") from error
        raise

    def infer(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        give_up_at_s, backoff_s = math.inf, INITIAL_BACKOFF_S
        while True:
            limit.wait(len(photos_nhwc), stop)
            try:
                return loop.run(engine.infer(photos_nhwc))
            except (EngineUnavailable, EngineBusy):
                give_up_at_s = min(give_up_at_s, time.monotonic() + UNAVAILABLE_TIMEOUT_S)
                if stop.is_set() or time.monotonic() > give_up_at_s:
                    raise
            stop.wait(random.uniform(0.5, 1.5) * backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def verify_model() -> None:
        # Busy or away it says nothing; what was answered was answered by the model that was there.
        with contextlib.suppress(EngineUnavailable, EngineBusy):
            loop.run(check_golden_photos(engine, bundle, which=slice(0, 1)))

    def close() -> None:
        loop.run(engine.close())
        loop.close()

    return LogitsEngine(
        bundle,
        infer,
        backend=backend or UNKNOWN_BACKEND,
        num_decoders=NUM_DECODERS,
        num_infer_threads=MAX_CONCURRENT_LISTINGS,
        max_batch_size=1,
        stop=stop,
        isolate=isolate,
        verify_model=verify_model,
        close=close,
    )
