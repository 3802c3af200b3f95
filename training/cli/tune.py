"""The verbs of `listing-vision tune`: learning rate, batch size and data loader for a machine and its photos."""

import math
from typing import Annotated

import typer

from training.cli.data import load_taxonomy
from training.cli.startup import load_torch
from training.cli.train import MicroBatch, RecipeName, Set, SplitManifest, TaxonomyFile
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

__all__ = ["tune_app"]

tune_app = create_cli_app("Measure which settings suit this machine and these photos before a long run.")


@tune_app.command("learning-rate")
def tune_learning_rate(
    manifest: SplitManifest,
    recipe: RecipeName = "quick",
    set_: Set = None,
    taxonomy: TaxonomyFile = None,
    steps: Annotated[
        int, typer.Option(min=20, help="Optimizer steps, over which the rate grows a thousandfold.")
    ] = 100,
    micro_batch: MicroBatch = None,
) -> None:
    """Learning-rate range test (Smith, WACV 2017): raise the rates until the loss grows, and suggest one.

    Example: listing-vision tune learning-rate data/grocery/manifest.parquet --recipe grocery
    """
    load_torch(workers=None)
    from training.recipe import load_recipe
    from training.trainer.autotune.estimates import estimate_minutes
    from training.trainer.autotune.range_test import run_range_test
    from training.trainer.hardware import warn_without_gpu
    from vision.manifest import Manifest

    chosen, tree = load_recipe(recipe, set_ or []), load_taxonomy(manifest, taxonomy)
    warn_without_gpu(recipe)
    found = run_range_test(chosen, Manifest.load(manifest), tree, num_steps=steps, micro_batch=micro_batch)
    for point in found.thin_out():
        typer.echo(f"{point.factor:10.4f} x the recipe's rates: loss {point.loss:.3f}")
    best = found.suggest_factor()
    typer.echo(
        f"use head_learning_rate = {chosen.head_learning_rate * best:.2g}, "
        f"backbone_learning_rate = {chosen.backbone_learning_rate * best:.2g} ({best:.2g} x the recipe's)"
    )
    minutes = estimate_minutes(chosen, found.num_photos, stage=found.stage, photos_per_s=found.photos_per_s)
    typer.echo(
        f"this recipe: about {format_count(round(minutes), 'minute')} here for "
        f"{format_count(found.num_photos, 'photo')}, without val"
    )


@tune_app.command("batch-size")
def tune_batch_size(
    recipe: RecipeName = "quick",
    set_: Set = None,
    largest: Annotated[int, typer.Option(min=2, help="Largest micro-batch to try.")] = 1024,
) -> None:
    """Find the micro-batch with the highest throughput in this machine's memory, on synthetic photos.

    Example: listing-vision tune batch-size --recipe grocery_gpu
    """
    load_torch()
    from training.recipe import load_recipe
    from training.trainer.autotune.batch_size import measure_batch_sizes
    from training.trainer.autotune.estimates import choose_heaviest_stage, estimate_minutes
    from training.trainer.hardware import warn_without_gpu

    chosen = load_recipe(recipe, set_ or [])
    warn_without_gpu(recipe)
    points = measure_batch_sizes(chosen, largest=largest)
    for point in points:
        typer.echo(f"{point.micro_batch:6d} photos at once: {point.describe()}")
    best = max((point for point in points if point.photos_per_s), key=lambda point: point.photos_per_s or 0)
    typer.echo(f"use --micro-batch {best.micro_batch} ({best.photos_per_s:.0f} photos/s)")
    minutes = estimate_minutes(
        chosen, 1000, stage=choose_heaviest_stage(chosen), photos_per_s=best.photos_per_s or math.inf
    )
    typer.echo(
        f"this recipe: about {format_count(round(minutes), 'minute')} here per 1,000 photos, without loading and val"
    )


@tune_app.command("loader")
def tune_loader(
    manifest: Annotated[str, typer.Argument(help="Manifest with a train split.")],
    recipe: RecipeName = "quick",
    set_: Set = None,
    taxonomy: TaxonomyFile = None,
    photos: Annotated[int, typer.Option(min=32, help="Photos per measurement.")] = 512,
    micro_batch: MicroBatch = None,
) -> None:
    """Measure data loader and model separately, for every photo size of a recipe, and name the bottleneck.

    Example: listing-vision tune loader data/grocery/manifest.parquet --recipe grocery
    """
    load_torch(workers=None)
    from training.recipe import load_recipe
    from training.trainer.autotune.loader_speed import measure_loader
    from training.trainer.hardware import warn_without_gpu
    from vision.manifest import Manifest

    chosen, tree = load_recipe(recipe, set_ or []), load_taxonomy(manifest, taxonomy)
    warn_without_gpu(recipe)
    speed = measure_loader(chosen, Manifest.load(manifest), tree, num_photos=photos, micro_batch=micro_batch)
    for loader in speed.loaders:
        typer.echo(
            f"{loader.stage.photo_px} px: loader {loader.loader_photos_per_s:.0f} photos/s with {loader.num_workers} "
            f"workers, model {loader.model_photos_per_s:.0f} photos/s: {loader.describe_bottleneck()}"
        )
    for probe in speed.probes:
        typer.echo(
            f"{probe.photo_px} px: features {probe.features_photos_per_s:.0f} photos/s, once; heads on them "
            f"{probe.heads_photos_per_s:.0f} photos/s, {format_count(probe.epochs, 'epoch')}"
        )
    typer.echo(
        f"this recipe: about {format_count(round(speed.estimate_minutes()), 'minute')} here for "
        f"{format_count(speed.num_photos, 'photo')}, without val"
        + (" and the teacher" if chosen.distillation_weight else "")
    )
