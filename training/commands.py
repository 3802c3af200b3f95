"""The verbs of making a model: `data`, `train`, `evaluate`, `export`. Torch is imported only when one runs."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vision.commands import new_app
from vision.errors import ListingVisionError

if TYPE_CHECKING:
    from vision.manifest import Manifest
    from vision.taxonomy import Taxonomy

__all__ = ["data_app", "evaluate", "export", "train"]

_log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL of sysexits.h: the same command goes on from the checkpoint."""

data_app = new_app("Make and check listing manifests.")
import_app = new_app("Turn a published data set or a folder into a manifest and a taxonomy.")
data_app.add_typer(import_app, name="import")

Output = Annotated[Path, typer.Option("--output", help="Folder for manifest.parquet and taxonomy.json.")]


@import_app.command("grocery-store")
def import_grocery_store(
    source: Annotated[Path, typer.Argument(help="The published repository's folder, or its dataset folder.")],
    output: Output,
) -> None:
    """The Grocery Store data set (Klasson et al., WACV 2019).

    Example: listing-vision data import grocery-store ~/GroceryStoreDataset --output data/grocery
    """
    from training.importers import import_grocery_store as run

    _save(*run(source), output)


@import_app.command("folder")
def import_folder(
    source: Annotated[Path, typer.Argument(help="A folder with split/class/name.jpg, split one of train, val, test.")],
    output: Output,
) -> None:
    """Plain folders, a category each.

    Example: listing-vision data import folder photos --output data/mine
    """
    from training.importers import import_folder as run

    _save(*run(source), output)


@data_app.command("draw")
def draw(
    output: Output,
    train_listings: Annotated[int, typer.Option(min=1)] = 300,
    val_listings: Annotated[int, typer.Option(min=1)] = 420,
    test_listings: Annotated[int, typer.Option(min=1)] = 200,
    seed: int = 0,
) -> None:
    """Draw listing photos of invented products and brands, where no data set is at hand.

    Example: listing-vision data draw --output data/drawn
    """
    from training.drawing import draw_dataset

    listings = {"train": train_listings, "val": val_listings, "test": test_listings}
    _save(*draw_dataset(output, listings=listings, seed=seed), output)


@data_app.command("check")
def check(
    manifest: Annotated[str, typer.Argument(help="Manifest: Parquet, CSV or JSON Lines, a path or fsspec URL.")],
    taxonomy: Annotated[Path | None, typer.Option(help="Default: taxonomy.json beside the manifest.")] = None,
) -> None:
    """Decode every photo and name what is wrong. Near duplicates are only listed; anything else exits 1.

    Example: listing-vision data check data/grocery/manifest.parquet
    """
    from training.checks import KINDS, check_manifest
    from vision.manifest import Manifest

    loaded = Manifest.load(manifest)
    findings = check_manifest(loaded, _taxonomy_beside(manifest, taxonomy))
    for finding in findings:
        typer.echo(f"{finding.kind}: {finding.message}")
    for kind, meaning in KINDS.items():
        typer.echo(f"{sum(finding.kind == kind for finding in findings):6d}  {kind} ({meaning})")
    typer.echo(f"{len(loaded):6d}  photos looked at")
    if any(finding.kind != "near_duplicate" for finding in findings):
        raise typer.Exit(1)


def train(
    manifest: Annotated[str, typer.Argument(help="Manifest with train and val splits.")],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run; an unfinished one is gone on with.")],
    recipe: Annotated[str, typer.Option(help="A shipped recipe's name, or a path that ends in .toml.")] = "quick",
    taxonomy: Annotated[Path | None, typer.Option(help="Default: taxonomy.json beside the manifest.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Loader processes; default by the machine.")] = None,
) -> None:
    """Fine-tune a backbone on a manifest's listing photos. The same command again resumes.

    SIGTERM or Ctrl-C saves a checkpoint and exits 75.

    Example: listing-vision train data/grocery/manifest.parquet --recipe grocery --run runs/grocery
    """
    import dataclasses
    import os

    from training.loop import Trainer
    from training.recipe import load_recipe
    from training.run import Run
    from vision.manifest import Manifest

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        raise ListingVisionError(
            f"WORLD_SIZE is {num_processes}: this version trains in one process; use --nproc-per-node=1"
        )
    chosen = load_recipe(recipe)
    if seed is not None:
        chosen = dataclasses.replace(chosen, seed=seed)
    tree = _taxonomy_beside(manifest, taxonomy)
    loaded = Manifest.load(manifest)
    target = Run(run)
    trainer = Trainer(chosen, manifest=loaded, taxonomy=tree, run=target, num_workers=workers)
    target.begin(recipe=chosen, manifest_url=_absolute(manifest), manifest=loaded, taxonomy=tree, spec=trainer.spec)
    trainer.run()
    if trainer.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    typer.echo(f"trained: {target.weights_path}; next: listing-vision export {run} --output BUNDLE")


def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle, or the folder of a finished run.")],
    manifest: Annotated[str, typer.Argument(help="Manifest with the photos to judge on.")],
    split: Annotated[str, typer.Option(help="Which rows of the manifest.")] = "test",
    output: Annotated[Path | None, typer.Option(help="Where to write metrics.json.")] = None,
    photos_per_listing: Annotated[
        int | None,
        typer.Option(min=1, help="Group photos of one category at random into listings of so many, for data without."),
    ] = None,
) -> None:
    """Judge a model per photo and per listing, through the decisions that serving makes.

    A bundle is judged by its ONNX export, a run by its trained weights.

    Example: listing-vision evaluate bundles/grocery data/grocery/manifest.parquet --split test
    """
    from training.evaluation import evaluate as judge
    from training.evaluation import format_table, pseudo_listings, without_nan
    from training.predictions import predict
    from vision.bundle import load_bundle
    from vision.decision import Calibration
    from vision.engine import OnnxEngine
    from vision.images import Preprocessing
    from vision.manifest import Manifest

    rows = Manifest.load(manifest).where_split(split)
    if (model / "run.json").is_file():
        from training.export import torch_forward
        from training.run import Run

        run = Run(model)
        tree, calibration = run.taxonomy, Calibration(certifies={})
        preprocessing = Preprocessing(input_px=run.recipe.input_px)
        infer = torch_forward(run.load_model())
    else:
        bundle = load_bundle(model)
        tree, calibration, preprocessing = bundle.taxonomy, bundle.calibration, bundle.info.preprocessing
        infer = OnnxEngine(bundle).infer
    predictions = predict(rows, tree, preprocessing, infer)
    for photo in predictions.unusable:
        _log.warning("not used: %s", photo)
    groups = None
    if photos_per_listing:
        groups = pseudo_listings(predictions.labels, num_photos=photos_per_listing, seed=0)
    figures = {"split": split, **judge(predictions, taxonomy=tree, calibration=calibration, groups=groups)}
    typer.echo(format_table(figures))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(without_nan(figures), indent=1, allow_nan=False) + "\n")
        typer.echo(f"written: {output}")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    name: Annotated[str, typer.Option(help="The model's name in answers.")] = "listing-vision",
) -> None:
    """Export to ONNX and TorchScript, compare both with the trained model, calibrate on val, and seal a bundle.

    Example: listing-vision export runs/grocery --output bundles/grocery
    """
    from training.export import export_bundle
    from training.run import Run

    bundle = export_bundle(Run(run), output, model_name=name)
    for export_name in ("onnx", "torchscript"):
        parity = bundle.info.parity[export_name]
        worst = max(parity["max_abs_difference"].values())
        typer.echo(f"{export_name}: largest difference {worst:.2g} on {bundle.info.parity['photos']}")
    for field in bundle.calibration.fields:
        if field.threshold is None:
            typer.echo(f"{field.name}: never filled, only suggested: {field.why_not}")
        else:
            typer.echo(f"{field.name}: filled from {field.threshold:.3f} on, {1 - field.alpha:.0%} right is promised")
    typer.echo(f"bundle {output}: {bundle.info.model_name} {bundle.info.model_version}")
    typer.echo(f"next: listing-vision serve {output}")


def _save(manifest: "Manifest", taxonomy: "Taxonomy", output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    manifest.save(str(output / "manifest.parquet"))
    taxonomy.save(output / "taxonomy.json")
    splits = manifest.column("split").value_counts().to_pylist()
    counts = ", ".join(f"{entry['counts']} {entry['values']}" for entry in splits)
    typer.echo(
        f"{output / 'manifest.parquet'}: {len(manifest)} photos ({counts}), {len(taxonomy.leaf_ids)} leaf categories, "
        f"{len(taxonomy.brands)} brands"
    )
    typer.echo(f"next: listing-vision data check {output / 'manifest.parquet'}")


def _taxonomy_beside(manifest: str, taxonomy: Path | None) -> "Taxonomy":
    from vision.taxonomy import Taxonomy

    if taxonomy is None and "://" in manifest:
        raise ListingVisionError("give --taxonomy: beside a URL there is no taxonomy.json to find")
    return Taxonomy.load(taxonomy or Path(manifest).parent / "taxonomy.json")


def _absolute(manifest: str) -> str:
    return manifest if "://" in manifest else str(Path(manifest).resolve())
