"""A training run's folder: what was asked, what came of it, and where the weights are."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.recipe import Recipe
from vision.errors import RunError
from vision.manifest import Manifest
from vision.model import ListingClassifier, ModelSpec
from vision.taxonomy import Taxonomy

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights_path(self) -> Path:
        """The averaged weights of the finished run."""
        return self.folder / "weights.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def begin(
        self, *, recipe: Recipe, manifest_url: str, manifest: Manifest, taxonomy: Taxonomy, spec: ModelSpec
    ) -> None:
        """Record what the run is made from; a run already begun must be of the same.

        Raises:
            RunError: the folder holds a run with another recipe, manifest or taxonomy.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "recipe": recipe.to_dict(),
            "manifest": manifest_url,
            "manifest_sha256": manifest.digest(),
            "taxonomy_sha256": hashlib.sha256(taxonomy.to_json().encode()).hexdigest(),
        }
        asked = json.loads(json.dumps(asked))
        path = self.folder / "run.json"
        if path.exists():
            known = json.loads(path.read_text())
            for key, value in asked.items():
                if known.get(key) != value:
                    what = key.removesuffix("_sha256")
                    raise RunError(f"{self.folder} holds a run with another {what}; give another --run folder")
            return
        taxonomy.save(self.folder / "taxonomy.json")
        (self.folder / "model.json").write_text(json.dumps(asdict(spec), indent=1) + "\n")
        path.write_text(json.dumps({**asked, "versions": _versions()}, indent=1) + "\n")

    def append_metrics(self, record: Mapping[str, float | None]) -> None:
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the records of steps that a resumed run does again, and a line that a crash cut short."""
        if not self.metrics_path.exists():
            return
        kept = [line for line in self.metrics_path.read_text().splitlines() if _step_of(line) <= step]
        temporary = self.metrics_path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self.metrics_path)

    def asked(self) -> dict[str, Any]:
        """What `begin` recorded.

        Raises:
            RunError: the folder is no run.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            raise RunError(f"{self.folder} is not a training run (no run.json); `listing-vision train` makes one")
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_dict(self.asked()["recipe"], source=str(self.folder / "run.json"))

    @property
    def taxonomy(self) -> Taxonomy:
        return Taxonomy.load(self.folder / "taxonomy.json")

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.metrics_path.read_text().splitlines()]

    def load_model(self) -> ListingClassifier:
        """The finished model, on the CPU, in evaluation mode.

        Raises:
            RunError: the run has not finished.
        """
        import safetensors.torch

        self.asked()
        if not self.weights_path.is_file():
            raise RunError(f"the run {self.folder} has not finished; repeat its train command to go on")
        raw = json.loads((self.folder / "model.json").read_text())
        spec = ModelSpec(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})
        model = ListingClassifier(spec)
        model.load_state_dict(safetensors.torch.load_file(self.weights_path))
        return model.eval()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _versions() -> dict[str, str]:
    import timm
    import torch
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
