"""The verb `listing-vision brand add`. Torch is imported only when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.startup import load_torch
from vision.errors import ListingVisionError
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

if TYPE_CHECKING:
    from training.export.add_brand import BrandShift

__all__ = ["brand_app"]

brand_app = create_cli_app("Change the brands of a finished model.")


@brand_app.callback()
def _keep_subcommands() -> None:
    """Keeps `add` a verb of its own while it is the only one."""


@brand_app.command("add")
def add(
    photos: Annotated[list[Path], typer.Argument(help="Photos of the brand's products: 5 to 20, at least 3.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to add to; it stays as it is.")],
    name: Annotated[str, typer.Option(help="Name of the brand.")],
    output: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name of the brand; may be given several times.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Listings on which to measure the effect on the other brands.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the manifest to use.")] = "val",
) -> None:
    """Add a brand to a bundle, from a few photos and without training.

    The model must have been trained with brand_head = "cosine". The guarantees for categories stay; that for the brand
    is void until `calibrate` has run.

    Example: listing-vision brand add --bundle bundles/shop --name Oatly --output bundles/shop-oatly oatly/*.jpg
    """
    load_torch()
    from training.export.add_brand import add_brand, compute_brand_shifts
    from vision.bundle import load_bundle
    from vision.manifest import Manifest

    rows = None if manifest is None else Manifest.load(manifest).select_split(split)
    source = load_bundle(bundle)
    added = add_brand(source, _read_photos(photos), name=name, output=output, aliases=alias or ())
    info = added.bundle.info
    typer.echo(
        f"brand {added.brand.name} ({added.brand.id}) imprinted from {format_count(added.num_photos, 'photo')}: model "
        f"{source.info.model_version} is now {info.model_version}, taxonomy {info.taxonomy_version}"
    )
    typer.echo(
        "category logits are bit-equal: guarantees for categories certified with ONNX Runtime on the CPU stay valid"
        if added.categories_equal
        else "category logits are not bit-equal: every guarantee is void"
    )
    typer.echo(f"written: {output}; brand is suggested, not prefilled, until `listing-vision calibrate` has run")
    if rows is not None:
        typer.echo(_format_shifts(compute_brand_shifts(source, added.bundle, rows), added.brand.name))


def _read_photos(paths: list[Path]) -> dict[str, bytes]:
    try:
        return {str(path): path.read_bytes() for path in paths}
    except OSError as error:
        raise ListingVisionError(f"photo {error.filename} cannot be read: {error.strerror}") from error


def _format_shifts(shifts: "tuple[BrandShift, ...]", name: str) -> str:
    lines = [f"{'labelled':<24} {'listings':>8} {'right before':>12} {'after':>6}  changed to {name}"]
    for shift in shifts:
        before, after = (shift.num_right_before, shift.num_right_after)
        known = shift.label != "not known"
        line = f"{shift.label:<24} {shift.num_listings:>8} " + (
            f"{before:>12} {after:>6}" if known else f"{'-':>12} {'-':>6}"
        )
        line += f"  {shift.num_moved_to_new} ({shift.num_moved_to_new / shift.num_listings:.1%})"
        if shift.num_changed_otherwise:
            line += f", to another answer {shift.num_changed_otherwise}"
        lines.append(line)
    num_listings = sum(shift.num_listings for shift in shifts)
    num_moved_to_new = sum(shift.num_moved_to_new for shift in shifts)
    return "\n".join(
        [
            *lines,
            f"of {format_count(num_listings, 'listing')}, {num_moved_to_new} "
            f"({num_moved_to_new / num_listings:.1%}) now {name}",
        ]
    )
