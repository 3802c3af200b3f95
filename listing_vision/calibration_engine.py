"""The engine that computes predictions for a certificate: one of this process, or a Triton elsewhere."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import typer

from vision.bundle import UNKNOWN_BACKEND, Bundle, name_rendition_backend
from vision.engine import Engine, Logits
from vision.errors import EngineBroken, PhotoError
from vision.runtime.progress import Progress

if TYPE_CHECKING:
    from training.inference.predictions import Predictions
    from vision.manifest import Manifest

__all__ = ["DecodeIn", "ManifestPredictor", "open_predictor", "refuse_contradictions"]

_log = logging.getLogger(__name__)

DecodeIn = Literal["triton", "gateway"]
_InferFiles = Callable[[Sequence[bytes]], tuple[Sequence[PhotoError | None], Logits]]
"""`training.inference.predictions.InferFiles`; that module is imported only when needed."""


class ManifestPredictor:
    """Predictions of a bundle's model for manifests."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        infer_files: _InferFiles | None,
        *,
        rendition_px: int | None,
        other_brands: bool,
    ) -> None:
        self._bundle, self._engine, self._infer_files = bundle, engine, infer_files
        self._rendition_px = rendition_px
        self._other_brands = other_brands

    @property
    def backend(self) -> str:
        """What a certificate of these predictions is bound to."""
        return name_rendition_backend(self._engine.backend, self._rendition_px)

    def predict(self, rows: "Manifest") -> "Predictions":
        """Predict all photos; those that cannot be used are logged, larger ones than renditions among them.

        Raises:
            ManifestError: unknown labels, or no photo can be used.
        """
        from training.inference.predictions import predict

        predictions = predict(
            rows,
            self._bundle.taxonomy,
            self._bundle.info.preprocessing,
            self._engine.infer,
            infer_files=self._infer_files,
            rendition_px=self._rendition_px,
            # Small batches, which fit the batch and time limits of any Triton.
            batch_size=8 if isinstance(self._engine, _BlockingTritonEngine) else 64,
            other_brands=self._other_brands,
        )
        for photo in predictions.unusable:
            _log.warning("left out of calibration: %s", photo)
        return predictions


def refuse_contradictions(*, engine: str, triton: str | None, decode_in: DecodeIn, rendition_px: int | None) -> None:
    """Check the options of a verb that say what computes the predictions, before any work.

    Raises:
        typer.BadParameter: two of them contradict each other.
    """
    if triton and engine != "onnxruntime":
        raise typer.BadParameter("with --triton, leave --engine out: the Triton computes the predictions")
    if rendition_px and triton and decode_in == "triton":
        raise typer.BadParameter("--rendition is for backfills, which send pixels; add --decode-in gateway")


@contextmanager
def open_predictor(
    bundle: Bundle,
    triton: str | None,
    decode_in: DecodeIn = "gateway",
    *,
    engine: str = "onnxruntime",
    rendition_px: int | None = None,
    other_brands: bool = False,
) -> Iterator[ManifestPredictor]:
    """Open the bundle here, or connect to a Triton that serves it.

    Args:
        bundle: the model.
        triton: HOST:PORT; None: `engine` in this process.
        decode_in: where photos are decoded with a Triton; `triton`: if its model can.
        engine: what runs the bundle without a Triton.
        rendition_px: short side of the photos; None: they are originals.
        other_brands: whether a brand that the taxonomy lacks is taken as such instead of refused.

    Raises:
        ListingVisionError, BundleError, EngineUnavailable: as `training.inference.evaluated_model.open_engine`.
        EngineBroken: the Triton answers the golden photos differently, or does not say what computes its model.
    """
    if triton is None:
        from training.inference.evaluated_model import open_engine

        with Progress(f"loading {bundle.folder}"):
            opened = open_engine(bundle, engine)
        yield ManifestPredictor(bundle, opened, None, rendition_px=rendition_px, other_brands=other_brands)
        return
    with asyncio.Runner() as runner:
        connected = _BlockingTritonEngine(bundle, triton, runner, allow_decoding=decode_in == "triton")
        try:
            yield ManifestPredictor(
                bundle, connected, connected.infer_files, rendition_px=rendition_px, other_brands=other_brands
            )
        finally:
            connected.close()


class _BlockingTritonEngine:
    def __init__(self, bundle: Bundle, address: str, runner: asyncio.Runner, *, allow_decoding: bool) -> None:
        from serving.inference.health import check_golden_photos
        from serving.inference.triton import TritonEngine
        from serving.inference.triton_channel import TritonAccess

        async def connect() -> tuple[TritonEngine, str]:
            engine = TritonEngine(address, allow_decoding=allow_decoding, access=TritonAccess.from_environment())
            try:
                await check_golden_photos(engine, bundle)
                return engine, await engine.fetch_backend()
            except BaseException:
                await engine.close()
                raise

        self._runner = runner
        self._engine, self.backend = runner.run(connect())
        if self.backend == UNKNOWN_BACKEND:
            self.close()
            raise EngineBroken(
                f"the model at {address} does not say what computes it, so no guarantee can hold; serve a repository "
                "that `listing-vision triton repository` wrote"
            )

    def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return self._runner.run(self._engine.infer(photos_nhwc))

    @property
    def infer_files(self) -> _InferFiles | None:
        """None if the model takes pixels only."""
        infer_encoded = self._engine.infer_encoded
        if infer_encoded is None:
            return None

        async def infer_each(photos: Sequence[bytes]) -> tuple[list[PhotoError | None], Logits]:
            # Each photo is a listing of its own, with a listing's deadline.
            results = await asyncio.gather(*(infer_encoded([photo]) for photo in photos))
            errors = [error for decoded in results for error in decoded.errors]
            return errors, Logits(*map(np.concatenate, zip(*(decoded.logits for decoded in results), strict=True)))

        return lambda photos: self._runner.run(infer_each(photos))

    def close(self) -> None:
        self._runner.run(self._engine.close())
