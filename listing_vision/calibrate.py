"""The verb `calibrate`: certify thresholds again, on other listings or with the backend that will serve."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import typer

from vision.bundle import UNKNOWN_BACKEND, Bundle, load_bundle, name_rendition_backend, require_new_folder
from vision.engine import Engine, Logits, OnnxEngine
from vision.errors import EngineBroken, PhotoError

__all__ = ["calibrate"]

_log = logging.getLogger(__name__)

DecodeIn = Literal["triton", "gateway"]
_InferFiles = Callable[[Sequence[bytes]], tuple[Sequence[PhotoError | None], Logits]]
"""`training.inference.predictions.InferFiles`; that module is imported only when needed."""


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    manifest: Annotated[str, typer.Argument(help="Manifest with a val split, and a calibrate split if there is one.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    tune_split: Annotated[str, typer.Option(help="Split for temperatures and candidate thresholds.")] = "val",
    alpha_category: Annotated[float, typer.Option(help="Maximum error rate of prefilled categories.")] = 0.05,
    alpha_brand: Annotated[float, typer.Option(help="Maximum error rate of prefilled brands.")] = 0.02,
    categories: Annotated[
        Literal["path", "depth"],
        typer.Option(
            help="path: one guarantee for the deepest prefilled category. depth: one for each depth, which needs more "
            "listings."
        ),
    ] = "path",
    delta: Annotated[float, typer.Option(help="Maximum probability that any guarantee fails.")] = 0.05,
    triton: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Triton that serves the bundle, to certify its backend.")
    ] = None,
    decode_in: Annotated[
        DecodeIn,
        typer.Option(
            help="With --triton, as for `serve`: triton, if its model can decode; or gateway, which backfills use too."
        ),
    ] = "triton",
    rendition_px: Annotated[
        int | None,
        typer.Option(
            "--rendition",
            min=16,
            help="Short side in pixels, if the manifest's photos are copies of that size (`data shard --max-px`): the "
            "guarantee is then that of `backfill --rendition`. Default: originals.",
        ),
    ] = None,
    other_brands: Annotated[
        bool,
        typer.Option("--other-brands", help="A brand that the taxonomy lacks counts as out of scope, not as an error."),
    ] = False,
) -> None:
    """Certify the thresholds of each field again; writes a new bundle with the same weights.

    Guarantees are tested on the manifest's calibrate split, or on four fifths of the tune split where there is none.

    Example: listing-vision calibrate bundles/grocery data/grocery/manifest.parquet --output bundles/grocery-2
    """
    from training.calibration.certify import Guarantee
    from training.calibration.splits import split_calibration_rows
    from training.export.model_card import format_guarantees
    from training.export.recalibrate import recalibrate
    from training.inference.predictions import Predictions, predict
    from vision.manifest import Manifest

    if rendition_px and triton and decode_in == "triton":
        raise typer.BadParameter("--rendition is for backfills, which send pixels; add --decode-in gateway")
    guarantee = Guarantee(alpha_category=alpha_category, alpha_brand=alpha_brand, delta=delta, categories=categories)
    require_new_folder(output)
    loaded = load_bundle(bundle)
    tune_rows, tested_rows, split = split_calibration_rows(Manifest.load(manifest), tune_split=tune_split)
    if tested_rows is None:
        _log.warning(
            "%s has no calibrate split: the guarantee is tested on %s, which models may have been selected on; for "
            "real use keep listings for it (`data split --calibrate 0.1`)",
            manifest,
            tune_split,
        )
    with _open_engine(loaded, triton, decode_in) as (engine, infer_files):

        def run_predictions(rows: Manifest) -> Predictions:
            preprocessing = loaded.info.preprocessing
            # Small batches, which fit the batch and time limits of any Triton.
            predictions = predict(
                rows,
                loaded.taxonomy,
                preprocessing,
                engine.infer,
                infer_files=infer_files,
                batch_size=8 if triton else 64,
                other_brands=other_brands,
            )
            for photo in predictions.unusable:
                _log.warning("left out of calibration: %s", photo)
            return predictions

        written = recalibrate(
            loaded,
            output,
            tune=run_predictions(tune_rows),
            tested=run_predictions(tested_rows) if tested_rows else None,
            split=split,
            backend=name_rendition_backend(engine.backend, rendition_px),
            guarantee=guarantee,
        )
    for line in format_guarantees(written.calibration):
        typer.echo(line)
    typer.echo(f"bundle {output}: {written.info.model_name} {written.info.model_version}, calibrated on {split}")


@contextmanager
def _open_engine(
    bundle: Bundle, triton: str | None, decode_in: DecodeIn
) -> Iterator[tuple[Engine, _InferFiles | None]]:
    if triton is None:
        yield OnnxEngine(bundle), None
    else:
        with asyncio.Runner() as runner:
            engine = _BlockingTritonEngine(bundle, triton, runner, allow_decoding=decode_in == "triton")
            try:
                yield engine, engine.infer_files
            finally:
                engine.close()


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
