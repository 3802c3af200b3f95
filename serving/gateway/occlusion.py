"""Occlusion maps: how much of a category's or brand's probability is lost when a part of the photo is hidden.

Zeiler & Fergus, ECCV 2014, section 4.1. Needs only the model's outputs.
"""

import asyncio
import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.responses import build_model_version
from serving.api.status import Refusal
from serving.auth.interceptor import CALLER
from serving.auth.quota import PhotoQuota
from serving.decoding.prepared import PreparedPhoto
from serving.gateway.admission import Admission
from serving.gateway.deadline import enforce_deadline
from serving.gateway.inference import call_engine, check_breaker, no_usable_photo_refusal
from serving.gateway.validation import check_language_code, check_photo_uris
from serving.inference.engine import AsyncEngine
from serving.inference.fair_slots import CALLER_KEY
from serving.rollout.router import Router
from vision.bundle import Bundle
from vision.errors import PhotoError
from vision.prediction.fusion import compute_brand_probabilities, compute_leaf_probabilities, fuse_brand_logits
from vision.taxonomy import Taxonomy

if TYPE_CHECKING:
    from serving.gateway.photo_fetch import PhotoFetcher

__all__ = ["GRID_SIZE", "NUM_VARIANTS", "Explanation", "PhotoExplainer", "encode_jpeg", "explain"]

GRID_SIZE = 7
"""Cells per side: small enough to separate the product from the table, large enough that hiding one matters."""
NUM_VARIANTS = 1 + GRID_SIZE**2
"""Photos that the model computes for one explanation."""
_BATCH_SIZE = 10
_MARGIN = 0.5
"""Share of a cell by which the hidden part extends into each neighbour, so that its edges are not those of the map."""


class Explanation(NamedTuple):
    label: int
    """Column of the category or brand logits."""
    probability: float
    importances: npt.NDArray[np.float64]
    """(GRID_SIZE, GRID_SIZE) probability lost with each cell hidden."""


class PhotoExplainer:
    """Explains photos of the stable release, one at a time and only while capacity is left: no upload waits for it."""

    def __init__(
        self,
        router: Router,
        admission: Admission,
        quotas: PhotoQuota | None,
        photo_fetcher: "PhotoFetcher | None",
    ) -> None:
        self._router = router
        self._admission = admission
        self._quotas = quotas
        self._photo_fetcher = photo_fetcher
        self._lock = asyncio.Lock()

    async def explain(self, request: pb.ExplainPhotoRequest, *, deadline_s: float) -> pb.ExplainPhotoResponse:
        """Return the occlusion map of one photo.

        Raises:
            Refusal: as for a listing; TOO_BUSY also while another photo is explained.
        """
        check_language_code(request.language_code)
        field = f"photo.{request.photo.WhichOneof('source') or 'content'}"
        if request.photo.uri:
            check_photo_uris({field: request.photo.uri}, self._photo_fetcher.check if self._photo_fetcher else None)
        async with enforce_deadline(deadline_s):
            check_breaker(self._router.stable)
            if self._lock.locked() or not self._admission.has_low_priority_capacity(NUM_VARIANTS):
                raise Refusal(
                    reason="TOO_BUSY",
                    message="a photo is explained only while capacity is left; try later",
                    retry_after_s=1.0,
                )
            if self._quotas:
                self._quotas.consume(CALLER.get(), NUM_VARIANTS)
            async with self._lock:
                with (
                    self._admission.admit(
                        NUM_VARIANTS, len(request.photo.content), deadline_s=deadline_s, caller=CALLER_KEY.get()
                    ),
                    self._router.stable.acquire() as release,
                ):
                    content = await self._load_photo(request.photo)
                    if isinstance(content, bytes):
                        prepared = await release.decoders.prepare(content)
                    else:
                        prepared = PreparedPhoto(None, content)
                    if prepared.pixels is None:
                        raise no_usable_photo_refusal({field: prepared.error})
                    work = explain(release.engine, release.bundle, prepared.pixels, target=request.target)
                    found = await call_engine(release, work)
        return pb.ExplainPhotoResponse(
            **_describe_target(release.bundle.taxonomy, found.label, request),
            probability=found.probability,
            row_count=GRID_SIZE,
            column_count=GRID_SIZE,
            importances=found.importances.ravel().tolist(),
            model_input=encode_jpeg(prepared.pixels),
            model=build_model_version(release.bundle),
        )

    async def _load_photo(self, photo: pb.Photo) -> bytes | PhotoError:
        if not photo.uri:
            return photo.content
        assert self._photo_fetcher is not None
        return await self._photo_fetcher.fetch(photo.uri)


async def explain(
    engine: AsyncEngine,
    bundle: Bundle,
    photo: npt.NDArray[np.uint8],
    *,
    target: pb.ExplanationTarget = pb.EXPLANATION_TARGET_CATEGORY,
) -> Explanation:
    """Explain one (S, S, 3) uint8 photo, S being the bundle's input_px.

    Raises:
        EngineError: as the engine's `infer`.
    """
    variants = _occlude_cells(photo)
    logits = []
    for at in range(0, len(variants), _BATCH_SIZE):
        found = await engine.infer(variants[at : at + _BATCH_SIZE])
        logits.append(found.brand if target == pb.EXPLANATION_TARGET_BRAND else found.category)
    compute = _compute_brand_probabilities if target == pb.EXPLANATION_TARGET_BRAND else _compute_leaf_probabilities
    probabilities = await asyncio.to_thread(compute, np.concatenate(logits), bundle)
    label = int(probabilities[0].argmax())
    probability_drop = probabilities[0, label] - probabilities[1:, label]
    return Explanation(label, float(probabilities[0, label]), probability_drop.reshape(GRID_SIZE, GRID_SIZE))


def encode_jpeg(photo: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo).save(out, "JPEG", quality=85)
    return out.getvalue()


def _occlude_cells(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return (NUM_VARIANTS, S, S, 3): the photo, then the photo with each cell in its mean colour."""
    side = photo.shape[0]
    colour = photo.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    edges = np.arange(GRID_SIZE) * side / GRID_SIZE
    begins = np.clip(np.floor(edges - _MARGIN * side / GRID_SIZE), 0, side).astype(int)
    ends = np.clip(np.ceil(edges + (1 + _MARGIN) * side / GRID_SIZE), 0, side).astype(int)
    variants = np.repeat(photo[None], NUM_VARIANTS, axis=0)
    for number in range(GRID_SIZE**2):
        row, column = divmod(number, GRID_SIZE)
        variants[1 + number, begins[row] : ends[row], begins[column] : ends[column]] = colour
    return variants


def _compute_leaf_probabilities(logits: npt.NDArray[np.float32], bundle: Bundle) -> npt.NDArray[np.float64]:
    """Return (P, C) probabilities of each photo alone, as in `PhotoRecognition`."""
    return compute_leaf_probabilities(logits, None, bundle.calibration, bundle.taxonomy).astype(np.float64)


def _compute_brand_probabilities(logits: npt.NDArray[np.float32], bundle: Bundle) -> npt.NDArray[np.float64]:
    """Return (P, B) probabilities of each photo alone."""
    fused = fuse_brand_logits(logits, None, bundle.calibration)
    return compute_brand_probabilities(fused, bundle.calibration).astype(np.float64)


def _describe_target(taxonomy: Taxonomy, label: int, request: pb.ExplainPhotoRequest) -> dict[str, Any]:
    """Return the fields of the response that say what is explained."""
    language = taxonomy.match_language(request.language_code)
    if request.target != pb.EXPLANATION_TARGET_BRAND:
        category = taxonomy.by_id[taxonomy.leaf_ids[label]]
        return {"category_id": category.id, "name": category.get_name(language)}
    if label == 0:
        return {"no_brand": True}
    brand = taxonomy.brands[label - 1]
    return {"brand_id": brand.id, "name": brand.get_name(language)}
