"""The verb `classify`: classify one listing's photos with a server or a bundle, and print the suggestion."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vision.errors import ListingVisionError, PhotoError

if TYPE_CHECKING:
    from listing_vision_client.protocol import listing_vision_pb2 as pb

__all__ = ["classify", "classify_at_server", "classify_with_bundle", "format_response", "read_photos", "to_json"]

MIN_SHOWN_PROBABILITY = 0.01
"""Alternatives below it are not shown."""


def classify(
    photos: Annotated[list[Path], typer.Argument(help="The photos of one listing.")],
    server: Annotated[str | None, typer.Option(help="HOST:PORT of a running gateway.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A bundle to classify with, without a server.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the gRPC response as JSON.")] = False,
    explain: Annotated[
        Path | None,
        typer.Option(help="Folder for the photos with Grad-CAM heat maps; needs --bundle."),
    ] = None,
) -> None:
    """Suggest category and brand for one listing from its photos, by a server or with a bundle.

    Example: listing-vision classify front.jpg label.jpg --server localhost:50051
    """
    if (server is None) == (bundle is None):
        raise typer.BadParameter("give either --server HOST:PORT or --bundle FOLDER")
    if explain and bundle is None:
        raise typer.BadParameter("--explain needs --bundle FOLDER: heat maps need the weights")
    read = read_photos(photos)
    response = classify_with_bundle(bundle, read) if bundle else classify_at_server(str(server), read)
    typer.echo(to_json(response) if as_json else format_response(response, [path.name for path in photos]))
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
    # On stderr: with --json, stdout holds the JSON alone.
    typer.echo(f"written: {len(written)} photos with heat maps in {folder}, the first is {written[0].name}", err=True)


def classify_at_server(address: str, photos: Sequence[bytes], *, listing_id: str = "") -> "pb.ClassifyListingResponse":
    """Return the response of a running gateway.

    Raises:
        ListingVisionError: the call failed; the service's reason is in the message.
    """
    from serving.client import Access, CallFailed, ListingVisionClient
    from serving.observability.tracing import trace_program

    with trace_program("listing-vision-classify"), ListingVisionClient(address, Access.from_environment()) as client:
        try:
            return client.classify(photos, listing_id=listing_id)
        except CallFailed as error:
            raise ListingVisionError(f"{address} returned {error}") from error


def classify_with_bundle(folder: Path, photos: Sequence[bytes]) -> "pb.ClassifyListingResponse":
    """Return the response computed in this process by the decoder, model and decision rule of the gateway.

    Raises:
        BundleError: the bundle is incomplete or altered.
        PhotoError: no photo can be used.
    """
    import numpy as np

    from serving.api import responses
    from serving.decoding.prepared import prepare
    from vision.bundle import load_bundle
    from vision.engine import OnnxEngine

    bundle = load_bundle(folder)
    prepared = [prepare(photo, bundle.info.preprocessing) for photo in photos]
    usable = [photo.pixels for photo in prepared if photo.pixels is not None]
    if not usable:
        raise PhotoError(
            "no photo can be used:\n" + "\n".join(f"  photo {i}: {p.error}" for i, p in enumerate(prepared))
        )
    engine = OnnxEngine(bundle)
    errors = [photo.error for photo in prepared]
    return responses.build_response(bundle.for_backend(engine.backend), errors, engine.infer(np.stack(usable)))


def read_photos(paths: Sequence[Path]) -> list[bytes]:
    try:
        return [path.read_bytes() for path in paths]
    except OSError as error:
        raise ListingVisionError(f"photo {error.filename} cannot be read: {error.strerror}") from error


def to_json(response: "pb.ClassifyListingResponse") -> str:
    from google.protobuf import json_format

    return json.dumps(
        json_format.MessageToDict(response, preserving_proto_field_name=True), indent=2, ensure_ascii=False
    )


def format_response(response: "pb.ClassifyListingResponse", names: Sequence[str]) -> str:
    """Return a table of category, confidence and action, then a line per photo; `names` are those of the photos."""
    from listing_vision_client.protocol import listing_vision_pb2 as pb
    from listing_vision_client.protocol import reasons_pb2

    def format_action(field: "pb.CategorySuggestion | pb.BrandSuggestion") -> str:
        return "prefill" if field.action == pb.ACTION_PREFILL else f"suggest: {field.not_prefilled.message}"

    lines = [f"{'category':<44} {'confidence':>10}  action"]
    for depth, step in enumerate(response.category_path):
        name = "  " * depth + step.name
        lines.append(f"{name:<44} {step.probability:>10.1%}  {format_action(step)}")
    brand = response.brand
    name = {pb.BRAND_KIND_BRAND: brand.name, pb.BRAND_KIND_OTHER: "not in the taxonomy"}.get(brand.kind, "no brand")
    confidence = f"{brand.probability:.1%}" if brand.HasField("probability") else ""
    lines.append(f"{'brand: ' + name:<44} {confidence:>10}  {format_action(brand)}")
    likely = [a for a in response.category_alternatives[1:4] if a.probability >= MIN_SHOWN_PROBABILITY]
    if others := ", ".join(f"{a.path_names[-1]} {a.probability:.1%}" for a in likely):
        lines.append(f"alternatives: {others}")
    for name, photo in zip(names, response.photos, strict=True):
        if photo.HasField("error"):
            reason = reasons_pb2.PhotoErrorReason.Name(photo.error.reason)
            lines.append(f"{name}: not used, {reason}: {photo.error.message}")
        elif len(names) > 1:
            recognition = photo.recognition
            lines.append(f"{name}: {recognition.category_name} {recognition.category_probability:.1%}")
    lines.append(f"model {response.model.name} {response.model.version}, taxonomy {response.model.taxonomy_version}")
    return "\n".join(lines)
