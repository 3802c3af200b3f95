"""The verb `calibrate`: promises tested anew, on other listings or with the backend that will serve."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from vision.bundle import Bundle, load_bundle
from vision.decision import Calibration
from vision.engine import Engine, Logits, OnnxEngine

__all__ = ["calibrate", "say_promises"]


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    manifest: Annotated[str, typer.Argument(help="Manifest with a val split, and a calibrate split if there is one.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    tune_split: Annotated[str, typer.Option(help="Listings that temperatures and thresholds come from.")] = "val",
    alpha_category: Annotated[float, typer.Option(help="A filled category is wrong at most this often.")] = 0.05,
    alpha_brand: Annotated[float, typer.Option(help="A filled brand is wrong at most this often.")] = 0.02,
    delta: Annotated[float, typer.Option(help="Any of the promises fails with at most this probability.")] = 0.05,
    triton: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Triton that serves the bundle, to certify its backend.")
    ] = None,
    other_brands: Annotated[
        bool, typer.Option("--other-brands", help="A brand that the taxonomy lacks counts as such, not as a mistake.")
    ] = False,
) -> None:
    """Certify anew from which probability on each field is filled in; writes a new bundle with the same weights.

    The promises are tested on the manifest's calibrate split; without one half of the tune split serves for it.

    Example: listing-vision calibrate bundles/grocery data/grocery/manifest.parquet --output bundles/grocery-2
    """
    from training.calibration import Promises
    from training.predictions import Predictions, predict
    from training.recalibration import recalibrate, tune_and_calibration_rows
    from vision.manifest import Manifest

    promises = Promises(alpha_category=alpha_category, alpha_brand=alpha_brand, delta=delta)
    loaded = load_bundle(bundle)
    tune_rows, tested_rows, split = tune_and_calibration_rows(Manifest.load(manifest), tune_split=tune_split)
    with _engine(loaded, triton) as engine:

        def answers(rows: Manifest) -> Predictions:
            preprocessing = loaded.info.preprocessing
            return predict(rows, loaded.taxonomy, preprocessing, engine.infer, other_brands=other_brands)

        written = recalibrate(
            loaded,
            output,
            tune=answers(tune_rows),
            tested=answers(tested_rows) if tested_rows else None,
            split=split,
            backend=engine.backend,
            promises=promises,
        )
    say_promises(written.calibration)
    typer.echo(f"bundle {output}: {written.info.model_name} {written.info.model_version}, calibrated on {split}")


def say_promises(calibration: Calibration) -> None:
    for field in calibration.fields:
        if field.threshold is None:
            typer.echo(f"{field.name}: never filled, only suggested: {field.why_not}")
        else:
            typer.echo(
                f"{field.name}: filled from {field.threshold:.3f} on, in {field.coverage:.0%} of listings; "
                f"{1 - field.alpha:.0%} right is promised ({field.num_errors} of {field.num_filled} were wrong)"
            )


@contextmanager
def _engine(bundle: Bundle, triton: str | None) -> Iterator[Engine]:
    if triton is None:
        yield OnnxEngine(bundle)
    else:
        with asyncio.Runner() as runner:
            engine = _TritonOfOneCaller(bundle, triton, runner)
            try:
                yield engine
            finally:
                engine.close()


class _TritonOfOneCaller:
    def __init__(self, bundle: Bundle, address: str, runner: asyncio.Runner) -> None:
        from serving.engines import TritonEngine, check

        async def connect() -> tuple[TritonEngine, str]:
            engine = TritonEngine(address)
            try:
                await check(engine, bundle)
                return engine, await engine.backend()
            except BaseException:
                await engine.close()
                raise

        self._runner = runner
        self._engine, self.backend = runner.run(connect())

    def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return self._runner.run(self._engine.infer(photos_nhwc))

    def close(self) -> None:
        self._runner.run(self._engine.close())
