"""Training and evaluation from Python: what the verbs `train` and `evaluate` run."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.recipe import Recipe, load_recipe
from training.run import Run
from vision.manifest import Manifest
from vision.runtime.cpus import set_thread_policy
from vision.runtime.progress import Progress
from vision.taxonomy import Taxonomy

if TYPE_CHECKING:
    from training.inference.evaluated_model import EngineName, EvaluatedModel
    from training.inference.predictions import Predictions
    from training.trackers import Tracker
    from vision.bundle import Bundle

__all__ = ["Evaluation", "Trainer", "evaluate"]


class Trainer:
    """Fine-tunes a model on labelled photos. Repeated with the same arguments, it resumes.

    Example:
        Trainer("photos", "runs/first", recipe="linear_probe").train()
    """

    def __init__(
        self,
        photos: str | Path,
        run: str | Path,
        *,
        recipe: str | Recipe = "quick",
        overrides: Sequence[str] = (),
        taxonomy: Taxonomy | None = None,
        teacher: str | Path | None = None,
        machine: Mapping[str, Any] | None = None,
        trackers: "Sequence[str | Tracker]" = (),
        stop_requested: threading.Event | None = None,
    ) -> None:
        """Check the arguments and prepare the data; PyTorch is loaded by `train`.

        Args:
            photos: a manifest with train and val splits (path or URL), or a folder with photos of each class in a
                folder of its own, which is imported into `run`/data.
            run: folder of the run.
            recipe: a shipped recipe's name, the path of one, or a recipe.
            overrides: `FIELD=VALUE` of the recipe, as in `--set`.
            taxonomy: default: taxonomy.json beside the manifest.
            teacher: bundle or finished run, for recipes with a `distillation_weight`.
            machine: fields of `training.trainer.hardware.Machine`.
            trackers: that get the run's figures beside TensorBoard: `mlflow`, `wandb`, or your own.
            stop_requested: set, by another thread, it makes `train` save and return.

        Raises:
            RecipeError, ManifestError, TaxonomyError: naming what is wrong and the way out.
            RunStopped: `stop_requested` was set while a folder was imported; the same call begins again.
        """
        set_thread_policy()
        self.run = Run(Path(run))
        self._recipe_name = recipe if isinstance(recipe, str) else None
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
        self._stop_requested = stop_requested or threading.Event()
        self.notes: list[str] = []
        """What was done with a folder of photos, in sentences for a person."""
        if "://" not in str(photos) and Path(photos).is_dir():
            from training.data.prepared_folder import prepare_folder

            photos, self.notes = prepare_folder(
                Path(photos), self.run.folder / "data", stop=self._stop_requested.is_set
            )
        self._manifest_url = str(photos) if "://" in str(photos) else str(Path(photos).resolve())
        self._manifest = Manifest.load(self._manifest_url)
        self._taxonomy = taxonomy or Taxonomy.load(Path(self._manifest_url).parent / "taxonomy.json")
        self._teacher = Path(teacher) if teacher else None
        self._machine = dict(machine or {})
        self._trackers = trackers
        self.interrupted = False
        """Whether `train` returned before the end."""

    def train(self) -> Run:
        """Train to the end, or until SIGTERM, SIGINT, SIGUSR1 or `stop_requested`; under torchrun on all its ranks.

        Raises:
            RunError: as `training.trainer.training_loop.TrainingLoop.run`.
        """
        from training.trackers import create_trackers
        from training.trainer.distributed import join_ranks
        from training.trainer.hardware import Machine, warn_without_gpu
        from training.trainer.step_memory import suggest_smaller_batch
        from training.trainer.training_loop import TrainingLoop

        trackers = create_trackers(self._trackers)
        machine = Machine(**self._machine)
        with (
            join_ranks() as ranks,
            suggest_smaller_batch(machine.micro_batch or self.recipe.batch_size // ranks.world_size),
        ):
            if self._recipe_name and ranks.is_first:
                warn_without_gpu(self._recipe_name)
            loop = TrainingLoop(
                self.recipe,
                manifest_url=self._manifest_url,
                manifest=self._manifest,
                taxonomy=self._taxonomy,
                run=self.run,
                machine=machine,
                ranks=ranks,
                teacher=self._teacher,
                trackers=trackers,
                stop_requested=self._stop_requested,
            )
            loop.run()
        self.interrupted = loop.interrupted
        return self.run

    def export(self, folder: str | Path, *, name: str | None = None, pt2: bool = False) -> "Bundle":
        """Export the finished run to a new bundle.

        Args:
            folder: must not exist.
            name: the model's name in responses; default: the run's.
            pt2: whether to compile a `model.pt2` too, for CPUs of this kind.

        Raises:
            RunError, BundleError, ExportMismatch: as `training.export.export.export_bundle`.
        """
        from training.export.export import export_bundle

        return export_bundle(self.run, Path(folder), model_name=name or self.run.name, pt2=pt2)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    figures: dict[str, Any]
    """Per photo and per listing, as `listing-vision evaluate` writes them to JSON."""
    predictions: "Predictions"
    model: "EvaluatedModel"


def evaluate(
    model: str | Path,
    manifest: str | Path,
    *,
    split: str = "test",
    photos_per_listing: int | None = None,
    other_brands: bool = False,
    tune_split: str | None = None,
    engine: "EngineName" = "onnxruntime",
    rendition_px: int | None = None,
) -> Evaluation:
    """Evaluate a bundle by an export of it, or a finished run by its weights, with the decision rule of serving.

    Args:
        model: folder of a bundle or of a run.
        manifest: path or URL.
        split: of the manifest.
        photos_per_listing: group photos of one category at random into listings of this size.
        other_brands: whether a brand that the taxonomy lacks counts as out of scope instead of an error.
        engine: what runs a bundle: `onnxruntime`, or `aot-inductor` for its `model.pt2`.
        rendition_px: short side of the manifest's photos where they are copies of that size (`data shard --max-px`);
            larger ones are unusable.
        tune_split: adds `exploration`, what other thresholds would fill of this split's tune listings.

    Raises:
        BundleError, RunError, ManifestError: naming what is wrong and the way out.
    """
    set_thread_policy()
    with Progress(f"loading {model}"):
        from training.calibration.splits import select_tune_rows
        from training.evaluation.evaluate import evaluate as judge
        from training.evaluation.evaluate import explore_thresholds, group_pseudo_listings
        from training.evaluation.long_tail import count_training_leaves
        from training.evaluation.verdict import describe_certificate
        from training.inference.evaluated_model import load_evaluated_model
        from training.inference.predictions import predict

        whole = Manifest.load(str(manifest))
        judged = load_evaluated_model(Path(model), engine=engine, rendition_px=rendition_px)

    def predict_rows(rows: Manifest) -> "Predictions":
        return predict(
            rows,
            judged.taxonomy,
            judged.preprocessing,
            judged.infer,
            rendition_px=rendition_px,
            other_brands=other_brands,
        )

    predictions = predict_rows(whole.select_split(split))
    groups = None
    if photos_per_listing:
        groups = group_pseudo_listings(predictions.labels, num_photos=photos_per_listing, seed=0)
    figures = judge(
        predictions,
        taxonomy=judged.taxonomy,
        calibration=judged.calibration,
        groups=groups,
        training_counts=count_training_leaves(whole, judged.taxonomy),
    )
    figures["certificate"] = describe_certificate(judged.calibration, split=split)
    if tune_split:
        tuned = predict_rows(select_tune_rows(whole, tune_split=tune_split))
        figures["exploration"] = {
            "split": tune_split,
            "num": len(tuned.listing_ids),
            "selective": explore_thresholds(tuned, taxonomy=judged.taxonomy, calibration=judged.calibration),
        }
    return Evaluation(figures=figures, predictions=predictions, model=judged)
