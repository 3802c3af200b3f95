"""The verbs of making a model: `train`, `distill`, `runs`, `tune`, `evaluate`, `export`. Torch waits until one runs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.data import taxonomy_beside
from vision.errors import ListingVisionError
from vision.runtime.cli import EXIT_INTERRUPTED, new_app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.evaluation.looks import Look
    from training.trainer.hardware import Machine

__all__ = ["distill", "evaluate", "export", "runs", "train", "tune_app"]

_log = logging.getLogger(__name__)

tune_app = new_app("Find what suits this machine and these photos before a long run.")

SplitManifest = Annotated[str, typer.Argument(help="Manifest with train and val splits.")]
RecipeName = Annotated[str, typer.Option(help="A shipped recipe's name, or a path that ends in .toml.")]
TaxonomyFile = Annotated[Path | None, typer.Option(help="Default: taxonomy.json beside the manifest.")]


# torchrun takes --run for a short form of its own --run-path.
RunFolder = Annotated[
    Path, typer.Option("--run", "--run-folder", help="Folder of the run; an unfinished one is gone on with.")
]
Seed = Annotated[int | None, typer.Option(help="Instead of the recipe's.")]
Workers = Annotated[int | None, typer.Option(help="Loader processes a rank; default by the machine.")]
MicroBatch = Annotated[
    int | None, typer.Option(help="Most photos at once through the model; gradients of the rest are accumulated.")
]
Precision = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")]
AugmentOn = Annotated[str, typer.Option(help="auto, loader or device.")]
DecodeOn = Annotated[
    str, typer.Option(help="loader, or device: plain JPEGs on the GPU, where a node's CPUs are too few.")
]
Compile = Annotated[bool | None, typer.Option(help="torch.compile; default on a GPU.")]
KeepCheckpoints = Annotated[int, typer.Option(help="So many of the newest.")]
BadPhotoShare = Annotated[float, typer.Option(help="Stop above this share of unusable training photos.")]
TeacherBundle = Annotated[
    Path | None, typer.Option(help="A bundle or finished run to learn from, for recipes with a distillation_weight.")
]


def train(
    manifest: SplitManifest,
    run: RunFolder,
    recipe: RecipeName = "quick",
    taxonomy: TaxonomyFile = None,
    teacher: TeacherBundle = None,
    seed: Seed = None,
    workers: Workers = None,
    micro_batch: MicroBatch = None,
    precision: Precision = "auto",
    augment_on: AugmentOn = "auto",
    decode_on: DecodeOn = "loader",
    compile: Compile = None,
    keep_checkpoints: KeepCheckpoints = 2,
    bad_photo_share: BadPhotoShare = 0.01,
) -> None:
    """Fine-tune a backbone on a manifest's listing photos. The same command again resumes.

    SIGTERM, SIGUSR1 or Ctrl-C saves a checkpoint and exits 75: put the job into the queue again. On more than one GPU
    or machine: torchrun --nproc-per-node=8 -m training MANIFEST --run-folder FOLDER.

    Example: listing-vision train data/grocery/manifest.parquet --recipe grocery --run runs/grocery
    """
    from training.trainer.hardware import Machine

    machine = Machine(
        micro_batch=micro_batch,
        num_workers=workers,
        precision=precision,  # type: ignore[arg-type]  # checked there
        augment_on=augment_on,  # type: ignore[arg-type]
        decode_on=decode_on,  # type: ignore[arg-type]
        compile=compile,
        keep_checkpoints=keep_checkpoints,
        bad_photo_share=bad_photo_share,
    )
    _train(manifest, run, recipe=recipe, taxonomy=taxonomy, teacher=teacher, seed=seed, machine=machine)


def distill(
    manifest: SplitManifest,
    teacher: Annotated[Path, typer.Option(help="Bundle or finished run of a large, accurate model.")],
    run: RunFolder,
    recipe: RecipeName = "grocery_student",
    taxonomy: TaxonomyFile = None,
    seed: Seed = None,
    workers: Workers = None,
    compile: Compile = None,
) -> None:
    """Train a smaller, faster model to answer as a large one does, on the same photos cropped and mixed alike.

    Photos without labels teach too. The same as `train --teacher`, which also runs under torchrun; `export` and
    `compare` take the result like any other run.

    Example: listing-vision distill data/grocery/manifest.parquet --teacher bundles/large --run runs/student
    """
    from training.trainer.hardware import Machine

    machine = Machine(num_workers=workers, compile=compile)
    _train(manifest, run, recipe=recipe, taxonomy=taxonomy, teacher=teacher, seed=seed, machine=machine)


def _train(
    manifest: str,
    run: Path,
    *,
    recipe: str,
    taxonomy: Path | None,
    teacher: Path | None,
    seed: int | None,
    machine: "Machine",
) -> None:
    import dataclasses

    from training.recipe import load_recipe
    from training.run import Run
    from training.trainer.autotune import telling_of_memory
    from training.trainer.distributed import joined_ranks
    from training.trainer.trainer import Trainer
    from vision.manifest import Manifest

    chosen = load_recipe(recipe)
    if seed is not None:
        chosen = dataclasses.replace(chosen, seed=seed)
    tree = taxonomy_beside(manifest, taxonomy)
    target = Run(run)
    with joined_ranks() as ranks, telling_of_memory(machine.micro_batch or chosen.batch_size // ranks.num_ranks):
        trainer = Trainer(
            chosen,
            manifest_url=_absolute(manifest),
            manifest=Manifest.load(manifest),
            taxonomy=tree,
            run=target,
            machine=machine,
            ranks=ranks,
            teacher=teacher,
        )
        trainer.run()
    if trainer.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if ranks.is_first:
        typer.echo(f"trained: {target.weights_path}; next: listing-vision export {run} --output BUNDLE")


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, folders below included.")] = Path("runs"),
) -> None:
    """List training runs with their figures, the best on val first.

    Example: listing-vision runs runs
    """
    from training.run import find_runs

    lines = []
    for run in find_runs(folder):
        records = run.metrics()
        judged = [record for record in records if record.get("val_leaf_top1") is not None]
        val = judged[-1]["val_leaf_top1"] if judged else None
        figures = [
            f"{val:.1%}" if val is not None else "-",
            f"{judged[-1]['val_brand_top1']:.1%}" if judged and judged[-1].get("val_brand_top1") is not None else "-",
            f"{records[-1]['loss']:.3f}" if records else "-",
            f"{len(records)}/{run.recipe.num_epochs}",
            f"{sum(record['seconds'] for record in records) / 60:.1f}",
            "finished" if run.finished else "unfinished",
            run.recipe.backbone,
        ]
        lines.append((-1.0 if val is None else val, str(run.folder), figures))
    width = max(len(name) for _, name, _ in lines)
    typer.echo(f"{'run':{width}}    val  brand   loss epochs    min  state       backbone")
    for _, name, (leaf, brand, loss, epochs, minutes, state, backbone) in sorted(lines, key=lambda line: -line[0]):
        typer.echo(f"{name:{width}} {leaf:>6} {brand:>6} {loss:>6} {epochs:>6} {minutes:>6}  {state:10}  {backbone}")


def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle, or the folder of a finished run.")],
    manifest: Annotated[str, typer.Argument(help="Manifest with the photos to judge on.")],
    split: Annotated[str, typer.Option(help="Which rows of the manifest.")] = "test",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json and report.html; a name that ends in .json takes the figures alone."
        ),
    ] = None,
    photos_per_listing: Annotated[
        int | None,
        typer.Option(min=1, help="Group photos of one category at random into listings of so many, for data without."),
    ] = None,
    other_brands: Annotated[
        bool, typer.Option("--other-brands", help="A brand that the taxonomy lacks counts as such, not as a mistake.")
    ] = False,
) -> None:
    """Judge a model per photo and per listing, through the decisions that serving makes.

    A bundle is judged by its ONNX export, a run by its trained weights.

    Example: listing-vision evaluate bundles/grocery data/grocery/manifest.parquet --output reports/grocery
    """
    from training.evaluation.evaluate import evaluate as judge
    from training.evaluation.evaluate import format_table, pseudo_listings
    from training.evaluation.long_tail import count_training_leaves
    from training.evaluation.report import write_report
    from training.inference.evaluated_model import load_judged
    from training.inference.predictions import predict
    from vision.manifest import Manifest

    whole = Manifest.load(manifest)
    rows = whole.where_split(split)
    judged = load_judged(model)
    predictions = predict(rows, judged.taxonomy, judged.preprocessing, judged.infer, other_brands=other_brands)
    for photo in predictions.unusable:
        _log.warning("not used: %s", photo)
    groups = None
    if photos_per_listing:
        groups = pseudo_listings(predictions.labels, num_photos=photos_per_listing, seed=0)
    figures = judge(
        predictions,
        taxonomy=judged.taxonomy,
        calibration=judged.calibration,
        groups=groups,
        training_counts=count_training_leaves(whole, judged.taxonomy),
    )
    typer.echo(format_table(figures))

    def found_looks() -> "Sequence[Look]":
        from training.evaluation.looks import looks

        try:
            return looks(predictions, judged)
        except ListingVisionError as error:  # captum is an extra; the rest of the page is worth having without it
            _log.warning("the page does not show where the model looked: %s", error)
            return ()

    if output:
        for written in write_report({"model": judged.name, "split": split, **figures}, output, found_looks):
            typer.echo(f"written: {written}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    name: Annotated[str, typer.Option(help="The model's name in answers.")] = "listing-vision",
) -> None:
    """Export to ONNX and TorchScript, compare both with the trained model, calibrate on val, and seal a bundle.

    Example: listing-vision export runs/grocery --output bundles/grocery
    """
    from training.export.export import export_bundle
    from training.export.model_card import promise_lines
    from training.run import Run

    bundle = export_bundle(Run(run), output, model_name=name)
    for export_name in ("onnx", "torchscript"):
        parity = bundle.info.parity[export_name]
        worst = max(parity["max_abs_difference"].values())
        typer.echo(f"{export_name}: largest difference {worst:.2g} on {bundle.info.parity['photos']}")
    for line in promise_lines(bundle.calibration):
        typer.echo(line)
    typer.echo(f"bundle {output}: {bundle.info.model_name} {bundle.info.model_version}")
    typer.echo(f"next: listing-vision serve {output}")


@tune_app.command("learning-rate")
def tune_learning_rate(
    manifest: SplitManifest,
    recipe: RecipeName = "quick",
    taxonomy: TaxonomyFile = None,
    steps: Annotated[int, typer.Option(min=20, help="Optimizer steps; the rate grows a thousandfold over them.")] = 100,
) -> None:
    """Learning-rate range test (Smith, WACV 2017): grow the rates until the loss does, and say what to use.

    Example: listing-vision tune learning-rate data/grocery/manifest.parquet --recipe grocery
    """
    from training.recipe import load_recipe
    from training.trainer.autotune import range_test
    from vision.manifest import Manifest

    chosen, tree = load_recipe(recipe), taxonomy_beside(manifest, taxonomy)
    points = range_test(chosen, Manifest.load(manifest), tree, num_steps=steps)
    for point in points.shown():
        typer.echo(f"{point.factor:10.4f} x the recipe's rates: loss {point.loss:.3f}")
    best = points.suggestion()
    typer.echo(
        f"use head_learning_rate = {chosen.head_learning_rate * best:.2g}, "
        f"backbone_learning_rate = {chosen.backbone_learning_rate * best:.2g} ({best:.2g} x the recipe's)"
    )


@tune_app.command("batch-size")
def tune_batch_size(
    recipe: RecipeName = "quick",
    largest: Annotated[int, typer.Option(min=2, help="Try no larger one.")] = 1024,
) -> None:
    """Find the micro-batch that trains the most photos a second in this machine's memory, on invented photos.

    Example: listing-vision tune batch-size --recipe grocery_gpu
    """
    from training.recipe import load_recipe
    from training.trainer.autotune import batch_size_test

    chosen = load_recipe(recipe)
    points = batch_size_test(chosen, largest=largest)
    for point in points:
        typer.echo(f"{point.micro_batch:6d} photos at once: {point.outcome()}")
    best = max((point for point in points if point.photos_per_s), key=lambda point: point.photos_per_s or 0)
    typer.echo(f"use --micro-batch {best.micro_batch} ({best.photos_per_s:.0f} photos/s)")


@tune_app.command("loader")
def tune_loader(
    manifest: Annotated[str, typer.Argument(help="Manifest with a train split.")],
    recipe: RecipeName = "quick",
    taxonomy: TaxonomyFile = None,
    photos: Annotated[int, typer.Option(min=32, help="Photos a measurement.")] = 512,
) -> None:
    """Measure loader and model each alone, for every photo size of a recipe, and say which one holds the other up.

    Example: listing-vision tune loader data/grocery/manifest.parquet --recipe grocery
    """
    from training.recipe import load_recipe
    from training.trainer.autotune import loader_test
    from vision.manifest import Manifest

    chosen, tree = load_recipe(recipe), taxonomy_beside(manifest, taxonomy)
    for speed in loader_test(chosen, Manifest.load(manifest), tree, num_photos=photos):
        typer.echo(
            f"{speed.photo_px} px: loader {speed.loader_photos_per_s:.0f} photos/s with {speed.num_workers} workers, "
            f"model {speed.model_photos_per_s:.0f} photos/s: {speed.verdict()}"
        )


def _absolute(manifest: str) -> str:
    return manifest if "://" in manifest else str(Path(manifest).resolve())
