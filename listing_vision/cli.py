"""The one console script, with the verbs in the order of the work."""

from typing import Annotated

import typer

import vision
from listing_vision.bundle import bundle_app
from listing_vision.calibrate import calibration_app
from listing_vision.calibrate_plan import calibrate_plan_app
from listing_vision.classify import classify
from listing_vision.demo import demo
from serving.cli.backfill import backfill_app
from serving.cli.model import model_app
from serving.cli.outcomes import outcomes_app
from serving.cli.plan import plan_app
from serving.cli.serve import serve
from serving.cli.triton import triton_app, tune
from training.cli.brand import brand_app
from training.cli.compare import compare
from training.cli.data import data_app
from training.cli.experiment import create_outcome_manifests, experiment_app
from training.cli.model import convert, evaluate, export, runs
from training.cli.recipes import recipes
from training.cli.taxonomy import taxonomy_app
from training.cli.train import distill, train
from training.cli.tune import tune_app
from vision.runtime.cli import create_cli_app, run_app

__all__ = ["app", "main"]

app = create_cli_app(
    "Suggest category and brand of a marketplace listing from its photos. --debug adds tracebacks to failures."
)
data_app.command("from-outcomes")(create_outcome_manifests)
app.add_typer(data_app, name="data")
app.add_typer(taxonomy_app, name="taxonomy")
for verb in (
    recipes,
    train,
    distill,
    runs,
    evaluate,
    compare,
    export,
    convert,
    classify,
    demo,
):
    app.command()(verb)
app.add_typer(calibration_app)
app.add_typer(calibrate_plan_app)
tune_app.command("triton")(tune)
app.add_typer(tune_app, name="tune")
app.add_typer(brand_app, name="brand")
app.add_typer(bundle_app, name="bundle")
app.command()(serve)
app.add_typer(model_app, name="model")
app.add_typer(triton_app, name="triton")
app.add_typer(backfill_app, name="backfill")
app.add_typer(experiment_app, name="experiment")
app.add_typer(outcomes_app, name="outcomes")
app.add_typer(plan_app, name="plan")


@app.command()
def version() -> None:
    """Print the version.

    Example: listing-vision version
    """
    typer.echo(vision.__version__)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(vision.__version__)
        raise typer.Exit


@app.callback()
def take_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    run_app(app)
