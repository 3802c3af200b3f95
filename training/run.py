"""A training run's folder: its settings, metrics, checkpoints and weights."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from training.errors import RunError
from training.recipe import KeptWeights, Recipe
from vision.manifest import Manifest
from vision.runtime.files import replace_file, write_atomically
from vision.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

    from vision.model import ListingClassifier, ModelSpec

__all__ = ["Run", "find_runs", "list_differences"]


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights_path(self) -> Path:
        """The averaged weights of the finished run, as its recipe's `final_weights` chose them."""
        return self.folder / "weights.safetensors"

    def get_weights_path(self, kind: KeptWeights) -> Path:
        """The averaged weights of the last epoch, or of the one that val judged best."""
        return self.folder / f"weights_{kind}.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def begin(
        self,
        *,
        recipe: Recipe,
        manifest_url: str,
        manifest: Manifest,
        taxonomy: Taxonomy,
        spec: "ModelSpec",
        models: Mapping[str, str] | None = None,
    ) -> None:
        """Record what the run is made from; a run already begun must be of the same.

        Args:
            recipe: what is asked for.
            manifest_url: where the manifest was read from.
            manifest: of all splits.
            taxonomy: of the labels.
            spec: of the network.
            models: model versions of the `teacher`, and of the bundle that training begins with (`weights_version`),
                where there are such.

        Raises:
            RunError: the folder holds a run with another recipe, manifest or taxonomy; says what differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        requested = {
            "recipe": recipe.to_dict(),
            "manifest_sha256": manifest.compute_digest(),
            "taxonomy_sha256": hashlib.sha256(taxonomy.to_json().encode()).hexdigest(),
            **(models or {}),
        }
        requested = json.loads(json.dumps(requested))
        path = self.folder / "run.json"
        if path.exists():
            known = json.loads(path.read_text())
            if self.finished:
                # A field that recipes did not have then has its default: so it was trained. To resume an unfinished
                # run takes a checkpoint of this version, though.
                known["recipe"] = json.loads(json.dumps(self.recipe.to_dict()))
            kept = {*requested, "teacher", "weights_version"}
            differing = list_differences({key: known[key] for key in known if key in kept}, requested)
            if differing:
                raise RunError(
                    f"{self.folder} holds a run with another {_name_parts(differing)} ({'; '.join(differing)}); "
                    "give another --run folder"
                )
            return
        taxonomy.save(self.folder / "taxonomy.json")
        (self.folder / "model.json").write_text(json.dumps(asdict(spec), indent=1) + "\n")
        write_atomically(
            path, json.dumps({**requested, "manifest": manifest_url, "versions": _list_versions()}, indent=1) + "\n"
        )

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def append_bad_photo(self, problem: Mapping[str, Any], *, rank: int) -> None:
        """Name a photo that could not be used; every rank writes to a file of its own."""
        name = "bad_photos.jsonl" if rank == 0 else f"bad_photos.rank{rank}.jsonl"
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(problem, ensure_ascii=False) + "\n")

    def save_weights(
        self, *, last: Mapping[str, "torch.Tensor"], best: Mapping[str, "torch.Tensor"], final: KeptWeights
    ) -> None:
        """Write the weights atomically: `weights_path` comes last, and means that the run has finished.

        Raises:
            RunError: they cannot be written.
        """
        import safetensors.torch
        from safetensors import SafetensorError

        files = {
            self.get_weights_path("last"): last,
            self.get_weights_path("best"): best,
            self.weights_path: {"last": last, "best": best}[final],
        }
        # safetensors makes its files readable by their owner alone; whoever reads the rest of the folder may read them.
        mode = (self.folder / "run.json").stat().st_mode
        try:
            for path, tensors in files.items():
                with replace_file(path) as temporary:
                    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
                    temporary.chmod(mode)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{self.weights_path} cannot be written: {error}; make room and repeat the command, the last "
                "checkpoint holds the finished run"
            ) from error

    def drop_metrics_after(self, step: int) -> None:
        """Drop the records of steps that a resumed run does again, and a line that a crash cut short."""
        if not self.metrics_path.exists():
            return
        kept = [line for line in self.metrics_path.read_text().splitlines() if _read_step(line) <= step]
        write_atomically(self.metrics_path, "".join(line + "\n" for line in kept))

    def read_settings(self) -> dict[str, Any]:
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
        return Recipe.from_dict(self.read_settings()["recipe"], source=str(self.folder / "run.json"))

    @property
    def taxonomy(self) -> Taxonomy:
        return Taxonomy.load(self.folder / "taxonomy.json")

    def metrics(self) -> list[dict[str, Any]]:
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text().splitlines()]

    @property
    def finished(self) -> bool:
        return self.weights_path.is_file()

    def load_model(self, weights: KeptWeights | None = None) -> "ListingClassifier":
        """The finished model, on the CPU, in evaluation mode.

        Args:
            weights: of which epoch; None for the one that the recipe chose.

        Raises:
            RunError: the run has not finished.
        """
        import safetensors.torch

        from vision.model import ListingClassifier, ModelSpec

        self.read_settings()
        if not self.finished:
            raise RunError(f"the run {self.folder} has not finished; repeat its train command to go on")
        raw = json.loads((self.folder / "model.json").read_text())
        spec = ModelSpec(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})
        model = ListingClassifier(spec)
        if weights not in (None, *get_args(KeptWeights)):
            raise RunError(f"weights {weights!r}: use one of {', '.join(get_args(KeptWeights))}")
        path = self.get_weights_path(weights) if weights else self.weights_path
        if not path.is_file():
            raise RunError(f"{path} is missing: an earlier version trained this run and kept {self.weights_path} only")
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder and those below it, by name.

    Raises:
        RunError: there is none.
    """
    found = [Run(path.parent) for path in sorted(folder.glob("**/run.json"))]
    if not found:
        raise RunError(f"no training run in {folder}; `listing-vision train MANIFEST --run {folder}/NAME` makes one")
    return found


def list_differences(known: Mapping[str, Any], requested: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`recipe.seed: 0 there, 7 asked` for every value that is not the same in both."""
    found = []
    for key in dict.fromkeys([*known, *requested]):
        there, here = known.get(key), requested.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += list_differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key}: {_shorten(there)} there, {_shorten(here)} asked")
    return found


def _name_parts(differing: list[str]) -> str:
    """`recipe and manifest` of `recipe.seed: …`, `manifest_sha256: …`."""
    names = [text.split(":")[0].split(".")[0].removesuffix("_sha256") for text in differing]
    return " and ".join(dict.fromkeys(names))


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _read_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _list_versions() -> dict[str, str]:
    import timm
    import torch
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
