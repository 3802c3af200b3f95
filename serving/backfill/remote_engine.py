"""Classify by a server that may have live traffic too: a gateway, which also decides, or a Triton."""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
import tenacity

from listing_vision_client import Access, CallFailed, ListingVisionClient
from listing_vision_client.enums import Action, BrandKind, PhotoErrorReason
from listing_vision_client.errors import ErrorDetails
from listing_vision_client.results import ListingSuggestion, ModelVersion, PhotoError
from serving.api.limits import MAX_ALTERNATIVES, MAX_LISTING_ID_CHARS, MAX_PHOTOS, REQUEST_LIMIT_BYTES
from serving.backfill.job import Job, ModelVersions
from serving.backfill.local_engine import BackfillEngine, EngineOptions, LogitsEngine, ShardResult
from serving.backfill.output import build_suggestion, build_tables
from serving.backfill.pipeline import WaitTimes
from serving.backfill.plan import ShardPhotos
from serving.errors import BackfillError
from serving.inference.health import check_golden_photos, wait_for_golden_photos
from serving.inference.triton import TritonEngine
from serving.inference.triton_channel import TritonAccess
from serving.inference.triton_tensors import BACKFILL_PRIORITY
from serving.observability.tracing import client_span
from vision.bundle import UNKNOWN_BACKEND, Bundle
from vision.engine import Logits
from vision.errors import EngineBusy, EngineUnavailable
from vision.feeders.photo_reader import PhotoFailure, PhotoReader

__all__ = ["RateLimiter", "create_remote_engine"]

_T = TypeVar("_T")

UNAVAILABLE_TIMEOUT_S = 120.0
"""How long a server may be unavailable or overloaded before the job stops."""
CALL_TIMEOUT_S = 10.0
INITIAL_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
MAX_CONCURRENT_LISTINGS = 8
MAX_LISTING_BYTES = REQUEST_LIMIT_BYTES
"""Limit of a listing's photos together: a request less its other fields."""
NUM_DECODERS = 2


class RateLimiter:
    """Spaces photos evenly in time; safe to use from many threads."""

    def __init__(self, photos_per_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_per_photo = 1 / photos_per_s if photos_per_s else 0.0
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._clock = clock

    def wait(self, num_photos: int, stop: threading.Event) -> None:
        with self._lock:
            now_s = self._clock()
            # Unused time is not saved up: live traffic would meet it as a burst.
            begin_s = max(self._next_s, now_s)
            self._next_s = begin_s + num_photos * self._seconds_per_photo
        if begin_s > now_s:
            stop.wait(begin_s - now_s)


def create_remote_engine(
    address: str, bundle: Bundle, options: EngineOptions, *, photos_per_s: float | None
) -> BackfillEngine:
    """Return an engine that calls the gateway or the Triton at HOST:PORT, whichever it is.

    Raises:
        BackfillError: no server responds there, or a gateway that serves another model than the bundle.
    """
    client = ListingVisionClient(address, Access.from_environment(), call_hook=client_span)
    limit = RateLimiter(photos_per_s)
    try:
        return GatewayEngine(address, client, bundle, limit, options)
    except CallFailed as failed:
        client.close()
        if failed.code == grpc.StatusCode.UNIMPLEMENTED:
            return _create_triton_engine(address, bundle, limit, options)
        raise BackfillError(f"--target {address}: {failed}") from failed
    except BaseException:
        client.close()
        raise


class GatewayEngine:
    """Sends whole listings; decoding, model and decision are the gateway's."""

    def __init__(
        self, address: str, client: ListingVisionClient, bundle: Bundle, limit: RateLimiter, options: EngineOptions
    ) -> None:
        """Args:
        client: closed with the engine.

        Raises:
            BackfillError: the gateway serves another model than the bundle, or photos are renditions.
            CallFailed: the gateway does not describe its model.
        """
        if options.rendition_px:
            raise BackfillError(f"the gateway at {address} decides as for originals; leave --rendition or --target out")
        self.versions = _to_model_versions(client.get_model().model)
        self.wait_times = WaitTimes()
        self._address = address
        self._client = client
        self._limit = limit
        self._options = options
        self._stop = options.stop
        self._unavailable = threading.Event()
        """Set once a listing has waited for as long as it may, so that the others do not wait again."""
        wanted = ModelVersions.from_bundle(bundle, self.versions.backend)
        for name in ("name", "version", "taxonomy"):
            here, there = getattr(wanted, name), getattr(self.versions, name)
            if here != there:
                raise BackfillError(f"the gateway at {address} serves another model: {name} {there}, --model {here}")

    def classify(self, job: Job, shards: Iterable[ShardPhotos]) -> Iterator[ShardResult]:
        if job.top_k > MAX_ALTERNATIVES:
            raise BackfillError(f"--top-k {job.top_k}: a gateway returns {MAX_ALTERNATIVES} at most")
        if job.embedding:
            raise BackfillError("--embedding is not written through a gateway; leave it out, or leave --target out")
        reader = PhotoReader(job.base_url, stop=self._stop, timeout_s=self._options.photo_timeout_s)
        with ThreadPoolExecutor(MAX_CONCURRENT_LISTINGS, thread_name_prefix="listing") as pool:
            pending: list[tuple[ShardPhotos, float, list[Future[_ListingResult]]]] = []
            submitted: list[Future[_ListingResult]] = []
            try:
                for shard in shards:
                    began_s = time.monotonic()
                    bounds = np.searchsorted(shard.groups, np.arange(len(shard.listing_ids) + 1)).tolist()
                    calls = [
                        pool.submit(self._classify_listing, job, shard, begin, end, reader)
                        for begin, end in itertools.pairwise(bounds)
                    ]
                    pending.append((shard, began_s, calls))
                    submitted = [*(call for _, _, some in pending for call in some)]
                    if len(pending) > 1:
                        yield self._collect_shard(job, *pending.pop(0))
                while pending:
                    yield self._collect_shard(job, *pending.pop(0))
            finally:
                for call in submitted:
                    call.cancel()

    def close(self) -> None:
        self._client.close()

    def _collect_shard(
        self, job: Job, shard: ShardPhotos, began_s: float, calls: "Sequence[Future[_ListingResult]]"
    ) -> ShardResult:
        suggestions: dict[int, dict[str, Any]] = {}
        failures: dict[int, PhotoFailure] = {}
        for number, call in enumerate(calls):
            suggestion, failed = call.result()
            failures |= failed
            if suggestion is not None:
                suggestions[number] = suggestion
        return ShardResult(shard, build_tables(job, shard, suggestions, failures), time.monotonic() - began_s)

    def _classify_listing(
        self, job: Job, shard: ShardPhotos, begin: int, end: int, reader: PhotoReader
    ) -> "_ListingResult":
        began_s = time.monotonic()
        found = [reader.read(shard.photos[photo]) for photo in range(begin, end)]
        self.wait_times.add("read", time.monotonic() - began_s)
        if self._stop.is_set():  # a photo may have failed because it was not retried
            raise BackfillError("stopped")
        failures = {begin + place: one for place, one in enumerate(found) if isinstance(one, PhotoFailure)}
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
                raise BackfillError(f"the gateway at {self._address} rejects a listing: {failed}") from failed
            return None, failures | _to_failures(failed, sent)
        if _to_model_versions(response.model) != self.versions:
            raise BackfillError(
                f"the gateway at {self._address} now serves another model, {response.model.version}; "
                "the committed shards are those of the model before"
            )
        for photo, result in zip(sent, response.photos, strict=True):
            if result.error:
                failures[photo] = _to_failure(result.error)
        return _to_row(response, job), failures

    def _call_with_retries(self, contents: list[bytes], listing_id: str, job: Job) -> ListingSuggestion:
        """Raises CallFailed where a retry cannot help; BackfillError: the gateway is unavailable for too long."""

        def call() -> ListingSuggestion:
            self._limit.wait(len(contents), self._stop)
            began_s = time.monotonic()
            try:
                response = self._client.classify(
                    contents, listing_id=listing_id, num_alternatives=job.top_k, timeout_s=CALL_TIMEOUT_S
                )
            finally:
                self.wait_times.add("model", time.monotonic() - began_s)
            _raise_if_busy(response)
            return response

        is_retryable = tenacity.retry_if_exception(_is_retryable)
        policy = _create_retry_policy(is_retryable, self._stop, self._unavailable, on_give_up=self._give_up)
        return policy(call)

    def _give_up(self, state: tenacity.RetryCallState) -> ListingSuggestion:
        assert state.outcome
        failed = state.outcome.exception()
        self._unavailable.set()
        raise BackfillError(
            f"the gateway at {self._address} is unavailable for {UNAVAILABLE_TIMEOUT_S:g} s: {failed}; "
            "rerun the same command to resume"
        ) from failed


def _create_retry_policy(
    is_retryable: tenacity.retry_base,
    *stops: threading.Event,
    on_give_up: Callable[[tenacity.RetryCallState], Any] | None = None,
) -> tenacity.Retrying:
    """Return a policy for one call: retry until UNAVAILABLE_TIMEOUT_S after its first failure, or one of the events.

    Pauses double, are drawn, so that calls which were refused together do not come back together, and end with the
    first of the events.
    """
    backoff_s = tenacity.wait_exponential(multiplier=INITIAL_BACKOFF_S, max=MAX_BACKOFF_S)
    give_up_at_s = float("inf")

    def has_timed_out(state: tenacity.RetryCallState) -> bool:
        nonlocal give_up_at_s
        # Counted from the first failure: a rate limit may hold the call itself for minutes.
        give_up_at_s = min(give_up_at_s, time.monotonic() + UNAVAILABLE_TIMEOUT_S)
        return any(stop.is_set() for stop in stops) or time.monotonic() > give_up_at_s

    return tenacity.Retrying(
        retry=is_retryable,
        stop=has_timed_out,
        wait=lambda state: random.uniform(0.5, 1.5) * backoff_s(state),
        sleep=tenacity.sleep_using_event(stops[0]),
        reraise=True,
        retry_error_callback=on_give_up,
    )


def _is_retryable(error: BaseException) -> bool:
    if not isinstance(error, CallFailed):
        return False
    # Without a reason it is gRPC itself that rejects the message as too large.
    too_large = error.code == grpc.StatusCode.RESOURCE_EXHAUSTED and error.reason in ("", "REQUEST_TOO_LARGE")
    return error.code in _RETRYABLE_CODES and not too_large


def _raise_if_busy(response: ListingSuggestion) -> None:
    """Raises CallFailed, which is retried: the gateway had no time to decode a photo, which is no result of it."""
    for photo in response.photos:
        if photo.error and photo.error.reason == PhotoErrorReason.SERVICE_BUSY:
            raise CallFailed(code=grpc.StatusCode.UNAVAILABLE, message=photo.error.message, details=ErrorDetails())


_PHOTO_NOT_SENT = PhotoFailure(
    reason="PHOTO_NOT_SENT",
    message=f"a call holds at most {MAX_PHOTOS} photos and {MAX_LISTING_BYTES >> 20} MiB; the other photos are used",
)
_ListingResult = tuple[dict[str, Any] | None, dict[int, PhotoFailure]]
"""The columns of the suggestion, None where no photo can be used; and the failures of photos, by their number."""

_RETRYABLE_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


def _to_model_versions(model: ModelVersion) -> ModelVersions:
    return ModelVersions(
        name=model.name,
        version=model.version,
        taxonomy=model.taxonomy_version,
        calibration=model.calibration_version,
        backend="gateway",
    )


def _to_failure(error: PhotoError) -> PhotoFailure:
    return PhotoFailure(reason=error.reason.value, message=error.message)


def _to_failures(failed: CallFailed, sent: Sequence[int]) -> dict[int, PhotoFailure]:
    """Return the failure of each photo of a call that had no usable one."""
    by_field = {one.field: one for one in failed.details.violations}
    violations = {photo: by_field[f"photos[{place}].content"] for place, photo in enumerate(sent)}
    return {photo: PhotoFailure(reason=one.reason, message=one.description) for photo, one in violations.items()}


def _to_row(response: ListingSuggestion, job: Job) -> dict[str, Any]:
    prefill, brand = Action.PREFILL, response.brand
    kinds = {BrandKind.BRAND: "brand", BrandKind.NO_BRAND: "no_brand", BrandKind.UNDETERMINED: "undetermined"}
    brand_row = None
    if brand:
        kind, score = kinds.get(brand.kind, "unknown"), brand.probability or 0.0
        brand_row = (kind, brand.brand_id or None, brand.name or None, score, brand.action == prefill)
    row = build_suggestion(
        [(step.category_id, step.name, step.probability, step.action == prefill) for step in response.category_path],
        brand_row,
        out_of_scope=response.out_of_scope,
        photos_disagree=any(photo.recognition and photo.recognition.disagrees for photo in response.photos),
    )
    if job.top_k:
        row["alternatives"] = [
            {"id": a.category_id, "probability": a.probability} for a in response.category_alternatives
        ]
    return row


class _EventLoopThread:
    """An event loop on a thread, for the asynchronous Triton client."""

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


def _create_triton_engine(address: str, bundle: Bundle, limit: RateLimiter, options: EngineOptions) -> LogitsEngine:
    loop = _EventLoopThread()

    async def connect() -> tuple[TritonEngine, str]:
        # Feeders decode: logits are those of pixels, and so are the certified thresholds.
        access = TritonAccess.from_environment()
        engine = TritonEngine(address, allow_decoding=False, access=access, priority=BACKFILL_PRIORITY)
        await wait_for_golden_photos(engine, bundle)
        return engine, await engine.fetch_backend()

    try:
        engine, backend = loop.run(connect())
    except BaseException as error:
        loop.close()
        if isinstance(error, EngineUnavailable):
            raise BackfillError(f"--target {address}: {error}") from error
        raise

    def call(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        limit.wait(len(photos_nhwc), options.stop)
        return loop.run(engine.infer(photos_nhwc, with_embedding=True))

    def infer(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        is_retryable = tenacity.retry_if_exception_type((EngineUnavailable, EngineBusy))
        return _create_retry_policy(is_retryable, options.stop)(call, photos_nhwc)

    def verify_model() -> None:
        # An overloaded or unavailable Triton has not replaced its model; the next check finds out.
        with contextlib.suppress(EngineUnavailable, EngineBusy):
            loop.run(check_golden_photos(engine, bundle, which=slice(0, 1)))

    def close() -> None:
        loop.run(engine.close())
        loop.close()

    return LogitsEngine(
        bundle,
        infer,
        options,
        backend=backend or UNKNOWN_BACKEND,
        num_decoders=NUM_DECODERS,
        num_infer_threads=MAX_CONCURRENT_LISTINGS,
        max_batch_size=1,
        verify_model=verify_model,
        close=close,
    )
