"""Run one release's engine over the photos of a listing; its failures become refusals and count for its breaker."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from serving.api.status import FieldViolation, Refusal
from serving.decoding.prepared import find_size_error
from serving.inference.engine import EncodedInferenceResult, InferEncoded
from serving.observability.stage_timer import measure_stage
from serving.rollout.release import ServedRelease
from vision.engine import Logits
from vision.errors import (
    EngineBroken,
    EngineBusy,
    EngineUnavailable,
    PhotoError,
    PhotoFetchTimedOut,
    PhotoServiceBusy,
)
from vision.images import EncodedPhoto

__all__ = ["call_engine", "check_breaker", "infer_photos", "no_usable_photo_refusal"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFAULT_RETRY_DELAY_S = 0.5
"""Named to callers where no better estimate is known."""


async def infer_photos(
    release: ServedRelease,
    photos: Sequence[EncodedPhoto | PhotoError],
    *,
    fields: Sequence[str],
    with_embedding: bool = False,
) -> EncodedInferenceResult:
    """Return an error or None for each photo, and the logits of the photos without error.

    Args:
        release: what to infer with.
        photos: encoded, or the error of a photo that could not be fetched.
        fields: path of the request's field of each photo, for errors.
        with_embedding: whether the logits come with embeddings.

    Raises:
        Refusal: no photo is usable, or the engine failed.
    """
    errors = [photo if isinstance(photo, PhotoError) else find_size_error(photo) for photo in photos]
    contents = [p for p, error in zip(photos, errors, strict=True) if not isinstance(p, PhotoError) and error is None]
    logits = None
    if contents:
        infer = _infer_encoded if release.engine.infer_encoded else _infer_pixels
        decode_errors, logits = await infer(release, contents, with_embedding=with_embedding)
        remaining = iter(decode_errors)
        errors = [error or next(remaining) for error in errors]
    if logits is None:
        raise no_usable_photo_refusal(dict(zip(fields, errors, strict=True)))
    return EncodedInferenceResult(errors, logits)


async def _infer_pixels(
    release: ServedRelease, contents: Sequence[EncodedPhoto], *, with_embedding: bool
) -> tuple[Sequence[PhotoError | None], Logits | None]:
    with measure_stage("decode"):
        if len(contents) == 1:
            prepared = [await release.decoders.prepare(contents[0])]
        else:
            prepared = await asyncio.gather(*map(release.decoders.prepare, contents))
    errors = [photo.error for photo in prepared]
    usable = [photo.pixels for photo in prepared if photo.pixels is not None]
    if not usable:
        return errors, None
    check_breaker(release)  # it may have opened while photos were decoded
    photos_nhwc = usable[0][None] if len(usable) == 1 else np.stack(usable)
    return errors, await call_engine(release, release.engine.infer(photos_nhwc, with_embedding=with_embedding))


async def _infer_encoded(
    release: ServedRelease, contents: Sequence[EncodedPhoto], *, with_embedding: bool
) -> tuple[Sequence[PhotoError | None], Logits | None]:
    infer_encoded: InferEncoded | None = release.engine.infer_encoded
    assert infer_encoded is not None
    result = await call_engine(release, infer_encoded(contents, with_embedding=with_embedding))
    return result.errors, None if all(result.errors) else result.logits


async def call_engine(release: ServedRelease, call: Coroutine[Any, Any, _T]) -> _T:
    """Await an engine's result; record success or failure with the release's circuit breaker.

    Raises:
        Refusal: TOO_BUSY, MODEL_UNAVAILABLE or MODEL_BROKEN.
    """
    try:
        result = await call
    except EngineBusy as error:
        raise Refusal(
            reason="TOO_BUSY", message="the model's queue is full; try later", retry_after_s=DEFAULT_RETRY_DELAY_S
        ) from error
    except EngineUnavailable as error:
        release.breaker.record_failure()
        _log.warning("model unavailable: %s", error)
        raise _model_unavailable_refusal() from error
    except EngineBroken as error:
        release.breaker.record_failure()
        _log.error("model broken: %s", error)
        raise Refusal(reason="MODEL_BROKEN", message="the model gave no valid result; this is our fault") from error
    release.breaker.record_success()
    return result


def check_breaker(release: ServedRelease) -> None:
    """Raises Refusal: MODEL_UNAVAILABLE while the release's circuit breaker is open."""
    if release.breaker.is_open:
        raise _model_unavailable_refusal()


def no_usable_photo_refusal(errors: Mapping[str, PhotoError | None]) -> Refusal:
    """Return the refusal of a listing without a usable photo.

    Args:
        errors: what is wrong with each photo, by the path of its field.
    """
    found = {field: error for field, error in errors.items() if error is not None}
    reasons = sorted({error.reason for error in found.values()})
    # A retry can help as soon as it helps one photo.
    is_retryable = any(isinstance(error, (PhotoServiceBusy, PhotoFetchTimedOut)) for error in found.values())
    return Refusal(
        reason="PHOTOS_UNAVAILABLE" if is_retryable else "NO_USABLE_PHOTO",
        message=f"none of the {len(errors)} photos can be used: {', '.join(reasons)}",
        violations=[
            FieldViolation(field=field, reason=error.reason, description=str(error)) for field, error in found.items()
        ],
        metadata={"photo_count": len(errors)},
        retry_after_s=DEFAULT_RETRY_DELAY_S if is_retryable else None,
    )


def _model_unavailable_refusal() -> Refusal:
    return Refusal(
        reason="MODEL_UNAVAILABLE",
        message="the model cannot be reached now; try again",
        retry_after_s=DEFAULT_RETRY_DELAY_S,
    )
