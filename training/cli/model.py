"""The verb `convert`: the same model in another precision."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["convert"]


def convert(
    bundle: Annotated[Path, typer.Argument(help="A bundle in fp32.")],
    manifest: Annotated[str, typer.Argument(help="The manifest that it was trained on.")],
    precision: Annotated[str, typer.Option(help="fp16, for GPUs, or int8, for CPUs.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    max_top1_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse where a larger share of val's photos is no longer right.")
    ] = 0.005,
) -> None:
    """Write a bundle of the same weights in fp16 or INT8, judged on val and certified anew.

    INT8 takes the ranges of activations from training photos and the way to find them from val.

    Example: listing-vision convert bundles/grocery data/grocery/manifest.parquet --precision int8 --output bundles/int8
    """
    from training.export.model_card import promise_lines
    from training.export.precision import convert_bundle
    from vision.bundle import load_bundle
    from vision.manifest import Manifest

    written = convert_bundle(
        load_bundle(bundle),
        Manifest.load(manifest),
        output,
        precision=precision,  # type: ignore[arg-type]  # checked there
        max_top1_loss=max_top1_loss,
    )
    found = written.info.training["converted"]
    gained = f"{-100 * found['top1_loss']:+.2f} points of top-1 on {found['num_photos']} photos"
    typer.echo(f"{precision} by {found['how']}: {gained}")
    for name, rate in found["photos_per_s_one_thread"].items():
        typer.echo(f"{name}: {rate:.1f} photos/s, the model alone on one thread")
    for line in promise_lines(written.calibration):
        typer.echo(line)
    typer.echo(f"bundle {output}: {written.info.model_name} {written.info.model_version}")
