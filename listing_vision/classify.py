"""The verb `classify`: it serves an answer, and shows where the model that was trained looked for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.protocol import listing_vision_pb2 as pb

__all__ = ["classify"]


def classify(
    photos: Annotated[list[Path], typer.Argument(help="The photos of one listing.")],
    server: Annotated[str | None, typer.Option(help="HOST:PORT of a running gateway.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A bundle to answer from without a server.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The gRPC answer as JSON.")] = False,
    explain: Annotated[
        Path | None,
        typer.Option(help="Folder for the photos with heat where the answer was found; needs --bundle."),
    ] = None,
) -> None:
    """Recognise one listing from its photos, at a server or with a bundle.

    Example: listing-vision classify front.jpg label.jpg --server localhost:50051
    """
    from listing_vision import classify_listing as c

    if (server is None) == (bundle is None):
        raise typer.BadParameter("give either --server HOST:PORT or --bundle FOLDER")
    if explain and bundle is None:
        raise typer.BadParameter("--explain needs --bundle FOLDER: a server does not say where it looked")
    read = c.read_photos(photos)
    response = c.classify_with_bundle(bundle, read) if bundle else c.classify_at_server(str(server), read)
    typer.echo(c.to_json(response) if as_json else c.format_response(response, [path.name for path in photos]))
    if explain and bundle:
        usable = [not photo.HasField("error") for photo in response.photos]
        named = [(path.name, data) for path, data, used in zip(photos, read, usable, strict=True) if used]
        _explain(bundle, named, response, explain)


def _explain(
    bundle: Path, photos: list[tuple[str, bytes]], response: "pb.ClassifyListingResponse", folder: Path
) -> None:
    from training.evaluation.gradcam import write_overlays
    from vision.bundle import load_bundle

    leaf_id, brand_id = response.category_path[-1].category_id, response.brand.brand_id
    written = write_overlays(load_bundle(bundle), photos, folder, category_id=leaf_id, brand_id=brand_id)
    # Beside --json, whose reader wants nothing else on stdout.
    typer.echo(f"written: {len(written)} photos with heat in {folder}, {written[0].name} the first", err=True)
