"""The verb `classify`: classify one listing's photos with a server or a bundle, and print the suggestion."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vision.errors import ListingVisionError

if TYPE_CHECKING:  # gRPC is not installed where models are only trained
    from listing_vision_client.results import BrandSuggestion, CategorySuggestion, ListingSuggestion

__all__ = ["classify", "classify_at_server", "classify_with_bundle", "format_suggestion", "read_photos", "to_json"]

MIN_SHOWN_PROBABILITY = 0.01
"""Alternatives below it are not shown."""
_NUM_BUSY_RETRIES = 5
"""Retries of each photo of a table, which nobody waits for."""


def classify(
    photos: Annotated[
        list[Path], typer.Argument(help="The photos of one listing; with --output any number, or a folder.")
    ],
    server: Annotated[str | None, typer.Option(help="HOST:PORT of a running gateway.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="A bundle to classify with, without a server.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="CSV with a row for each photo, each a listing of its own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the suggestion as JSON.")] = False,
    explain: Annotated[
        Path | None,
        typer.Option(help="Folder for the photos with Grad-CAM heat maps; needs --bundle."),
    ] = None,
) -> None:
    """Suggest category and brand for one listing from its photos, by a server or with a bundle.

    Example: listing-vision classify front.jpg label.jpg --server localhost:50051

    Example: listing-vision classify photos --bundle bundles/first --output suggestions.csv
    """
    if (server is None) == (bundle is None):
        raise typer.BadParameter("give either --server HOST:PORT or --bundle FOLDER")
    if explain and bundle is None:
        raise typer.BadParameter("--explain needs --bundle FOLDER: heat maps need the weights")
    if output:
        if as_json or explain:
            raise typer.BadParameter("--output writes a table of many photos; --json and --explain are of one listing")
        _classify_many(photos, output, server=server, bundle=bundle)
        return
    if folders := [str(path) for path in photos if path.is_dir()]:
        raise typer.BadParameter(f"{folders[0]} is a folder: --output FILE.csv classifies each photo in it")
    read = read_photos(photos)
    suggestion = classify_with_bundle(bundle, read) if bundle else classify_at_server(str(server), read)
    typer.echo(to_json(suggestion) if as_json else format_suggestion(suggestion, [path.name for path in photos]))
    if explain and bundle:
        usable = [photo.error is None for photo in suggestion.photos]
        named = [(path.name, data) for path, data, used in zip(photos, read, usable, strict=True) if used]
        _explain(bundle, named, suggestion, explain)


def _classify_many(photos: list[Path], output: Path, *, server: str | None, bundle: Path | None) -> None:
    from listing_vision.classify_table import find_photos, write_table

    found = find_photos(photos)
    if bundle:
        from listing_vision.predictor import Predictor

        num_photos, num_errors = write_table(found, output, Predictor(bundle).predict)
    else:
        with _connect(str(server), num_busy_retries=_NUM_BUSY_RETRIES) as classify_listing:
            num_photos, num_errors = write_table(found, output, classify_listing)
    typer.echo(f"written: {output}, {num_photos} files, {num_errors} of them not used (column error)")
    if num_errors == num_photos:
        raise typer.Exit(1)


def _explain(bundle: Path, photos: list[tuple[str, bytes]], suggestion: "ListingSuggestion", folder: Path) -> None:
    from training.evaluation.gradcam import write_overlays
    from vision.bundle import load_bundle

    leaf_id, brand_id = suggestion.category_path[-1].category_id, suggestion.brand.brand_id if suggestion.brand else ""
    written = write_overlays(load_bundle(bundle), photos, folder, category_id=leaf_id, brand_id=brand_id)
    # On stderr: with --json, stdout holds the JSON alone.
    typer.echo(f"written: {len(written)} photos with heat maps in {folder}, the first is {written[0].name}", err=True)


def classify_at_server(address: str, photos: Sequence[bytes]) -> "ListingSuggestion":
    """Return the suggestion of a running gateway.

    Raises:
        ListingVisionError: the call failed; the service's reason is in the message.
    """
    with _connect(address) as classify_listing:
        return classify_listing(photos)


@contextmanager
def _connect(address: str, *, num_busy_retries: int = 0) -> "Iterator[Callable[[Sequence[bytes]], ListingSuggestion]]":
    """Yield `classify_at_server` for any number of listings over one channel."""
    from listing_vision_client import Access, CallFailed, ListingVisionClient
    from serving.observability.tracing import client_span, trace_program

    def classify_listing(photos: Sequence[bytes]) -> "ListingSuggestion":
        try:
            return client.classify(photos)
        except CallFailed as error:
            raise ListingVisionError(f"{address} returned {error}") from error

    access = Access.from_environment()
    with (
        trace_program("listing-vision-classify"),
        ListingVisionClient(address, access, num_busy_retries=num_busy_retries, call_hook=client_span) as client,
    ):
        yield classify_listing


def classify_with_bundle(folder: Path, photos: Sequence[bytes]) -> "ListingSuggestion":
    """Return the suggestion computed in this process by the decoder, model and decision rule of the gateway.

    Raises:
        BundleError: the bundle is incomplete or altered.
        PhotoError: no photo can be used.
    """
    from listing_vision.predictor import Predictor

    return Predictor(folder).predict(photos)


def read_photos(paths: Sequence[Path]) -> list[bytes]:
    try:
        return [path.read_bytes() for path in paths]
    except OSError as error:
        raise ListingVisionError(f"photo {error.filename} cannot be read: {error.strerror}") from error


def to_json(suggestion: "ListingSuggestion") -> str:
    """Return the suggestion with the names of the contract; what is absent is left out."""

    def drop_absent(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value is not None}

    return json.dumps(asdict(suggestion, dict_factory=drop_absent), indent=2, ensure_ascii=False)


def format_suggestion(suggestion: "ListingSuggestion", names: Sequence[str]) -> str:
    """Return a table of category, confidence and action, then a line per photo; `names` are those of the photos."""
    from listing_vision_client.enums import Action, BrandKind
    from vision.suggestion import format_confidence

    def format_action(field: "CategorySuggestion | BrandSuggestion") -> str:
        if field.action == Action.PREFILL:
            return "prefill"
        return f"suggest: {field.not_prefilled.message}" if field.not_prefilled else "suggest"

    lines = [f"{'category':<44} {'confidence':>10}  action"]
    for depth, step in enumerate(suggestion.category_path):
        name = "  " * depth + step.name
        lines.append(f"{name:<44} {format_confidence(step.probability):>10}  {format_action(step)}")
    if brand := suggestion.brand:
        names_by_kind = {
            BrandKind.BRAND: brand.name,
            BrandKind.OTHER: "not in the taxonomy",
            BrandKind.UNDETERMINED: "none is likely enough",
        }
        confidence = format_confidence(brand.probability) if brand.probability is not None else ""
        name = f"brand: {names_by_kind.get(brand.kind, 'no brand')}"
        lines.append(f"{name:<44} {confidence:>10}  {format_action(brand)}")
    likely = [a for a in suggestion.category_alternatives[1:4] if a.probability >= MIN_SHOWN_PROBABILITY]
    if others := ", ".join(f"{a.path_names[-1]} {format_confidence(a.probability)}" for a in likely):
        lines.append(f"alternatives: {others}")
    for name, photo in zip(names, suggestion.photos, strict=True):
        if photo.error:
            lines.append(f"{name}: not used, {photo.error.reason}: {photo.error.message}")
        elif photo.recognition and len(names) > 1:
            mark = ", out of scope" if photo.recognition.out_of_scope else ""
            mark += ", stands out" if photo.recognition.disagrees else ""
            confidence = format_confidence(photo.recognition.category_probability)
            lines.append(f"{name}: {photo.recognition.category_name} {confidence}{mark}")
    model = suggestion.model
    lines.append(f"model {model.name} {model.version}, taxonomy {model.taxonomy_version}")
    return "\n".join(lines)
