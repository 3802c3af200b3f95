"""The verbs `train` and `distill`. Torch is imported when one runs."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from training.cli.data import load_taxonomy
from training.cli.startup import load_torch, request_stop_on_signals
from training.errors import RunStopped
from training.recipe import load_recipe
from vision.runtime.cli import EXIT_INTERRUPTED, create_cli_app

__all__ = ["MicroBatch", "RecipeName", "Set", "SplitManifest", "TaxonomyFile", "distill", "train", "train_app"]

_log = logging.getLogger(__name__)

train_app = create_cli_app("Fine-tune a backbone on listing photos.")

SplitManifest = Annotated[str, typer.Argument(help="Manifest with train and val splits.")]
Photos = Annotated[
    str,
    typer.Argument(
        metavar="MANIFEST|FOLDER",
        help="Manifest with train and val splits; or a folder with a folder of photos for each class (or split and "
        "class), which is imported and split into the run's folder.",
    ),
]
RecipeName = Annotated[str, typer.Option(help="A shipped recipe's name, or a path that ends in .toml.")]
TaxonomyFile = Annotated[Path | None, typer.Option(help="Default: taxonomy.json beside the manifest.")]


# torchrun takes --run for a short form of its own --run-path.
RunFolder = Annotated[
    Path, typer.Option("--run", "--run-folder", help="Folder of the run; an unfinished run is resumed.")
]
Seed = Annotated[int | None, typer.Option(help="Seed. Default: the recipe's.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="FIELD=VALUE of the recipe, such as epochs=3 or stages.0.photo_px=160; several times. It is stored.",
    ),
]
Workers = Annotated[int | None, typer.Option(help="Data loader processes per rank. Default: chosen for the machine.")]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        help="Maximum photos per forward pass; gradients are accumulated over a batch. Default: what memory holds."
    ),
]
Precision = Annotated[str, typer.Option(help="Numeric precision: auto, bf16, fp16 or fp32.")]
AugmentOn = Annotated[str, typer.Option(help="Where photos are augmented: auto, loader or device.")]
DecodeOn = Annotated[
    str, typer.Option(help="Where photos are decoded: loader; or device, for plain JPEGs on a node with too few cores.")
]
Compile = Annotated[bool | None, typer.Option(help="Use torch.compile. Default: on a GPU.")]
KeepCheckpoints = Annotated[int, typer.Option(help="Number of newest checkpoints to keep.")]
MaxBadPhotoShare = Annotated[float, typer.Option(help="Stop above this share of unusable training photos.")]
TeacherBundle = Annotated[
    Path | None, typer.Option(help="A bundle or finished run to learn from, for recipes with a distillation_weight.")
]
Track = Annotated[
    list[str] | None,
    typer.Option(help="Report to mlflow or wandb too, where their environment variables say; several times."),
]


@train_app.command()
def train(
    manifest: Photos,
    run: RunFolder,
    recipe: RecipeName = "quick",
    taxonomy: TaxonomyFile = None,
    teacher: TeacherBundle = None,
    set_: Set = None,
    seed: Seed = None,
    workers: Workers = None,
    micro_batch: MicroBatch = None,
    precision: Precision = "auto",
    augment_on: AugmentOn = "auto",
    decode_on: DecodeOn = "loader",
    compile: Compile = None,
    keep_checkpoints: KeepCheckpoints = 2,
    max_bad_photo_share: MaxBadPhotoShare = 0.01,
    track: Track = None,
) -> None:
    """Fine-tune a backbone on a manifest's listing photos. Repeat the same command to resume.

    SIGTERM, SIGUSR1 or Ctrl-C saves a checkpoint and exits 75: submit the job again. On more than one GPU or machine:
    torchrun --nproc-per-node=8 -m training MANIFEST --run-folder FOLDER.

    Example: listing-vision train data/grocery/manifest.parquet --recipe grocery --run runs/grocery
    """
    machine = {
        "micro_batch": micro_batch,
        "num_workers": workers,
        "precision": precision,
        "augment_on": augment_on,
        "decode_on": decode_on,
        "compile": compile,
        "keep_checkpoints": keep_checkpoints,
        "max_bad_photo_share": max_bad_photo_share,
    }
    _run_training(
        manifest,
        run,
        recipe=recipe,
        taxonomy=taxonomy,
        teacher=teacher,
        overrides=set_ or [],
        seed=seed,
        trackers=track or [],
        machine=machine,
    )


def distill(
    manifest: SplitManifest,
    teacher: Annotated[Path, typer.Option(help="Bundle or finished run of a large, accurate model.")],
    run: RunFolder,
    recipe: RecipeName = "grocery_student",
    taxonomy: TaxonomyFile = None,
    set_: Set = None,
    seed: Seed = None,
    workers: Workers = None,
    micro_batch: MicroBatch = None,
    compile: Compile = None,
    track: Track = None,
) -> None:
    """Train a smaller, faster model on the predictions of a large one, for the same photos cropped and mixed alike.

    Photos without labels contribute too. The same as `train --teacher`, which also runs under torchrun; `export` and
    `compare` take the result like any other run.

    Example: listing-vision distill data/grocery/manifest.parquet --teacher bundles/large --run runs/student
    """
    train(
        manifest,
        run,
        recipe=recipe,
        taxonomy=taxonomy,
        teacher=teacher,
        set_=set_,
        seed=seed,
        workers=workers,
        micro_batch=micro_batch,
        compile=compile,
        track=track,
    )


def _run_training(
    manifest: str,
    run: Path,
    *,
    recipe: str,
    taxonomy: Path | None,
    teacher: Path | None,
    overrides: Sequence[str],
    seed: int | None,
    trackers: Sequence[str],
    machine: Mapping[str, Any],
) -> None:
    with request_stop_on_signals() as stop_requested:
        if seed is not None:
            overrides = [*overrides, f"seed={seed}"]
        chosen = load_recipe(recipe, overrides)
        _log.info("%s: %d epochs of %s on %s, in %s", recipe, chosen.num_epochs, chosen.backbone, manifest, run)
        load_torch(workers=machine.get("num_workers"))
        from training.api import Trainer

        try:
            trainer = Trainer(
                manifest,
                run,
                recipe=recipe,
                overrides=overrides,
                # A folder's is made from its classes.
                taxonomy=None if Path(manifest).is_dir() else load_taxonomy(manifest, taxonomy),
                teacher=teacher,
                machine=machine,
                trackers=trackers,
                stop_requested=stop_requested,
            )
        except RunStopped as error:
            _log.info("%s", error)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        for note in trainer.notes:
            _log.info("%s", note)
        trainer.train()
    if trainer.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"trained: {trainer.run.weights_path}; next: listing-vision export {run} --output BUNDLE")
