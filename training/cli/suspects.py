"""The verb `listing-vision data suspects`. Torch is imported only when it runs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.data.label_errors import FieldSuspects

__all__ = ["suspects"]

_log = logging.getLogger(__name__)


def suspects(
    manifest: Annotated[str, typer.Argument(help="Manifest: Parquet, CSV or JSON Lines, a path or fsspec URL.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for suspects.csv and suspects.html.")],
    taxonomy: Annotated[Path | None, typer.Option(help="Default: taxonomy.json beside the manifest.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A bundle or a finished run to take features from, not one trained on these labels: it hides the "
            "mistakes that it memorised. Default: ImageNet features."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that are judged by the others.")] = 5,
    input_px: Annotated[
        int | None, typer.Option(min=32, max=1024, help="Side of the photos. Default: 224, or the model's own.")
    ] = None,
    max_shown: Annotated[int, typer.Option(min=1, help="Suspects of each field on the page.")] = 200,
) -> None:
    """Find photos whose category or brand label is probably wrong, for a person to look at.

    Every label is compared with what the other listings' photos teach (confident learning). The features are kept in
    OUTPUT/features, so that a second look, after labels were corrected, decodes nothing.

    Example: listing-vision data suspects data/grocery/manifest.parquet --output reports/suspects
    """
    import torch

    from training.cli.data import taxonomy_beside
    from training.data.label_errors import find_suspects, write_csv
    from training.data.label_errors_page import suspects_page
    from training.inference.features import load_embedder, photo_features
    from vision.manifest import Manifest

    loaded, tree = Manifest.load(manifest), taxonomy_beside(manifest, taxonomy)
    loaded.labels(tree)  # unknown labels are named before an hour of decoding, not after
    embedder, preprocessing = load_embedder(model, input_px=input_px)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = photo_features(embedder, loaded, preprocessing, device=device, cache=output / "features")
    for photo in features.unusable:
        _log.warning("not used: %s", photo)
    found = find_suspects(loaded, tree, features, num_folds=folds)
    write_csv(found, output / "suspects.csv")
    page = suspects_page(found, title=f"Suspected labels of {manifest}", max_shown=max_shown)
    (output / "suspects.html").write_text(page, encoding="utf-8")
    for part in found:
        typer.echo(_summary(part))
    typer.echo(f"{len(features.unusable):6d}  photos could not be used")
    typer.echo(f"written: {output / 'suspects.csv'} (all), {output / 'suspects.html'} (with photos)")
    typer.echo(
        f"next: open {output / 'suspects.html'}, correct the labels in {manifest} that are wrong, and repeat this"
    )


def _summary(part: "FieldSuspects") -> str:
    lines = [f"{len(part.suspects):6d}  suspected {part.field} labels of {part.num_judged} compared"]
    if part.num_judged:
        lines[0] += f" ({part.accuracy:.1%} of those compared are also the likeliest)"
    if part.num_unlabelled:
        lines.append(f"{part.num_unlabelled:6d}  photos without a {part.field} label")
    if part.num_inner:
        lines.append(f"{part.num_inner:6d}  photos with an inner {part.field}, which is no mistake")
    if part.num_rare:
        lines.append(
            f"{part.num_rare:6d}  photos of {len(part.rare_classes)} {part.field} labels with too few listings to "
            f"judge: {', '.join(part.rare_classes)}"
        )
    return "\n".join(lines)
