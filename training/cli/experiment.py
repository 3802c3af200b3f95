"""The verbs of outcomes: `experiment report`, `data from-outcomes`."""

from pathlib import Path
from typing import Annotated

import typer

from vision.runtime.cli import create_cli_app
from vision.runtime.files import write_atomically
from vision.runtime.wording import format_count

__all__ = ["create_outcome_manifests", "experiment_app"]

experiment_app = create_cli_app("Compare releases by what sellers chose.")

OutcomesUrl = Annotated[str, typer.Argument(help="Folder or fsspec URL that `serve --outcomes` writes to.")]
IncludeUnverified = Annotated[
    bool, typer.Option("--include-unverified", help="Take outcomes without a valid suggestion_id too.")
]


@experiment_app.command("report")
def report(
    outcomes: OutcomesUrl,
    bundle: Annotated[list[Path], typer.Option(help="Bundle of a release; several may be given.")],
    control: Annotated[
        str | None, typer.Option(help="Release to compare the others with, as `model status` prints it.")
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(help="RELEASE=SHARE of listings as assigned, for the sample-ratio check.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Length of the windows for guarantees and drift.")] = 7,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for experiment.json and a page, experiment.html; or a .json file for the figures."),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="Write the guarantees' state for Prometheus, to a .prom file of the node exporter."),
    ] = None,
    include_unverified: IncludeUnverified = False,
) -> None:
    """Report acceptance by field and release, sequential comparisons, guarantees and drift.

    Exits 3 if a prefilled field violates its guarantee.

    Example: listing-vision experiment report outcomes --bundle a --bundle b --share 1f0a9c2e.5d21b7=0.95
    """
    from training.outcomes.html_report import write_experiment
    from training.outcomes.report import build_report
    from training.outcomes.tables import open_tables
    from training.outcomes.text_report import format_metrics, format_report
    from training.reporting.provenance import format_time
    from vision.bundle import load_bundle

    shares = dict(_parse_share(text) for text in share or ())
    bundles = [load_bundle(folder) for folder in bundle]
    calibrations = {loaded.release: loaded.calibration for loaded in bundles}
    taxonomies = {loaded.release: loaded.taxonomy for loaded in bundles}
    with open_tables(outcomes, taxonomies, include_unverified=include_unverified) as tables:
        made = build_report(tables, calibrations=calibrations, control=control, shares=shares, days=days)
        provenance = {"outcomes": outcomes, **tables.describe(), "date": format_time()}
    typer.echo(format_report(made))
    if output:
        typer.echo(f"written: {', '.join(map(str, write_experiment(made, provenance, output)))}")
    if metrics:
        # Prometheus' node exporter may read it at any time.
        write_atomically(metrics, format_metrics(made))
    if made.fields_to_switch_off:
        raise typer.Exit(3)


def create_outcome_manifests(
    outcomes: OutcomesUrl,
    photos: Annotated[str, typer.Option(help="Table with listing_id and photo, of all listings.")],
    taxonomy: Annotated[Path, typer.Option(help="taxonomy.json of the models that made the suggestions.")],
    output: Annotated[Path, typer.Option(help="Folder of the new manifests.")],
    include_unverified: IncludeUnverified = False,
) -> None:
    """Write manifests of what sellers chose: one to train on, and one of listings whose sellers saw no suggestion.

    Evaluate on the second one only: sellers keep wrong values that were prefilled.

    Example: listing-vision data from-outcomes outcomes --photos all.parquet --taxonomy taxonomy.json --output data/2
    """
    from training.outcomes.manifest import build_outcome_manifests
    from training.outcomes.tables import open_tables
    from vision.manifest import Manifest
    from vision.taxonomy import Taxonomy

    tree = Taxonomy.load(taxonomy)
    with open_tables(outcomes, {"": tree}, include_unverified=include_unverified) as tables:
        made = build_outcome_manifests(tables, Manifest.load(photos), tree)
        num_left_out = tables.num_left_out
    output.mkdir(parents=True, exist_ok=True)
    tree.save(output / "taxonomy.json")
    for name, manifest in (("manifest", made.shown), ("unseen", made.unseen)):
        manifest.save(str(output / f"{name}.parquet"))
        typer.echo(f"{output / f'{name}.parquet'}: {format_count(len(manifest), 'photo')}")
    if num_left_out:
        typer.echo(
            f"left out: {format_count(num_left_out, 'outcome')} without a valid suggestion_id (--include-unverified)"
        )
    if made.num_without_photos:
        typer.echo(
            f"left out: {format_count(made.num_without_photos, 'listing')} with an outcome and "
            f"without a photo in {photos}"
        )
    for name, count in list(made.new_brands.items())[:10]:
        typer.echo(
            f"not in the taxonomy: {name!r}, written {format_count(count, 'time')}; "
            f"`listing-vision brand add` can add it"
        )


def _parse_share(text: str) -> tuple[str, float]:
    release, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not release or not 0 <= value <= 1:
        raise typer.BadParameter(f"--share {text!r}: give RELEASE=SHARE with a share in 0..1")
    return release, value
