"""A model to evaluate: a bundle or a finished run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.inference.predictions import Infer
from vision.calibration import Calibration
from vision.images import Preprocessing
from vision.taxonomy import Taxonomy

if TYPE_CHECKING:
    from vision.model import ListingClassifier

__all__ = ["EvaluatedModel", "load_evaluated_model"]


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


def load_evaluated_model(folder: Path) -> EvaluatedModel:
    """Load a bundle, evaluated by its ONNX export, or a finished run, evaluated by its trained weights.

    Raises:
        BundleError: the folder is neither, or the bundle is incomplete or altered.
        RunError: the run has not finished.
    """
    if (folder / "run.json").is_file():
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
    from vision.bundle import load_bundle
    from vision.engine import OnnxEngine

    def load_network() -> "ListingClassifier":
        from training.inference.network import load_bundle_model

        return load_bundle_model(bundle)

    bundle = load_bundle(folder)
    engine = OnnxEngine(bundle)
    return EvaluatedModel(
        name=f"bundle {bundle.info.model_name} {bundle.info.model_version}",
        taxonomy=bundle.taxonomy,
        calibration=bundle.for_backend(engine.backend).calibration,
        preprocessing=bundle.info.preprocessing,
        infer=engine.infer,
        load_network=load_network,
    )
