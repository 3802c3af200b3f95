"""A model to evaluate: a bundle or a finished run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from training.inference.predictions import Infer
from vision.calibration import Calibration
from vision.errors import ListingVisionError
from vision.images import Preprocessing
from vision.taxonomy import Taxonomy

if TYPE_CHECKING:
    from vision.bundle import Bundle
    from vision.engine import Engine
    from vision.model import ListingClassifier

__all__ = ["EngineName", "EvaluatedModel", "load_evaluated_model", "open_engine"]

EngineName = Literal["onnxruntime", "aot-inductor"]


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    name: str
    """Name for people: `bundle grocery 1f3a…` or `run runs/grocery`."""
    taxonomy: Taxonomy
    calibration: Calibration
    """Without fields for a run: only an export is certified."""
    preprocessing: Preprocessing
    infer: Infer
    load_network: "Callable[[], ListingClassifier]"
    """Load the network in evaluation mode, for Grad-CAM."""


def load_evaluated_model(
    folder: Path, *, engine: EngineName = "onnxruntime", rendition_px: int | None = None
) -> EvaluatedModel:
    """Load a bundle, evaluated by an export of it, or a finished run, evaluated by its trained weights.

    Args:
        folder: of the bundle or run.
        engine: what runs a bundle. `aot-inductor` runs `model.pt2`, for which guarantees of ONNX Runtime do not hold.
        rendition_px: short side of the photos where they are copies of that size, for which guarantees of originals do
            not hold; None: originals.

    Raises:
        ListingVisionError: no such engine, or it or a rendition is given for a run.
        EngineUnavailable: `model.pt2` was compiled for another CPU, or cannot be loaded.
        BundleError: the folder is neither, or the bundle is incomplete or altered.
        RunError: the run has not finished.
    """
    if (folder / "run.json").is_file():
        if engine != "onnxruntime":
            raise ListingVisionError(
                f"{folder} is a run, evaluated by its weights; give a bundle with --engine {engine}"
            )
        if rendition_px:
            raise ListingVisionError(
                f"{folder} is a run, which has no guarantees, for renditions or originals; leave --rendition out"
            )
        from training.inference.forward import torch_forward
        from training.run import Run

        run = Run(folder)
        model = run.load_model()
        return EvaluatedModel(
            name=f"run {folder}",
            taxonomy=run.taxonomy,
            calibration=Calibration(certifies={}),
            preprocessing=Preprocessing(input_px=run.recipe.input_px),
            infer=torch_forward(model),
            load_network=lambda: model,
        )
    from vision.bundle import load_bundle, name_rendition_backend

    def load_network() -> "ListingClassifier":
        from training.inference.network import load_bundle_model

        return load_bundle_model(bundle)

    bundle = load_bundle(folder)
    opened = open_engine(bundle, engine)
    return EvaluatedModel(
        name=f"bundle {bundle.info.model_name} {bundle.info.model_version}",
        taxonomy=bundle.taxonomy,
        calibration=bundle.for_backend(name_rendition_backend(opened.backend, rendition_px)).calibration,
        preprocessing=bundle.info.preprocessing,
        infer=opened.infer,
        load_network=load_network,
    )


def open_engine(bundle: "Bundle", name: str) -> "Engine":
    """Open what runs a bundle in this process; it names its backend.

    Args:
        bundle: the model.
        name: one of `EngineName`.

    Raises:
        ListingVisionError: no such engine.
        BundleError: the bundle has no `model.pt2`.
        EngineUnavailable: `model.pt2` was compiled for another CPU, or cannot be loaded.
    """
    if name not in get_args(EngineName):
        raise ListingVisionError(f"engine {name!r} is not one of {', '.join(get_args(EngineName))}")
    if name == "aot-inductor":
        from training.inference.aot_inductor import AotInductorEngine

        return AotInductorEngine(bundle)
    from vision.engine import OnnxEngine

    return OnnxEngine(bundle)
