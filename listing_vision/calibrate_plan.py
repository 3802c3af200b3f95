"""The verb `calibrate-plan`: which listings to label next, and how many."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from listing_vision.calibration_engine import DecodeIn, open_predictor, refuse_contradictions
from vision.bundle import certificate_binding, load_bundle
from vision.errors import ManifestError

if TYPE_CHECKING:
    from training.calibration.label_plan import LabelPlan, PlannedField
    from training.calibration.label_planner import FieldForecast
    from vision.manifest import Manifest

__all__ = ["calibrate_plan_app"]

calibrate_plan_app = typer.Typer()


@calibrate_plan_app.command("calibrate-plan")
def calibrate_plan(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    labelled: Annotated[
        str,
        typer.Argument(
            help="Manifest with labels; rows of split val, calibrate or none show the present share of errors."
        ),
    ],
    unlabelled: Annotated[str, typer.Argument(help="Manifest of listings like those in production, to draw from.")],
    output: Annotated[Path, typer.Option(help="Manifest to label; its plan is written beside it (.plan.json).")],
    labels: Annotated[int, typer.Option(min=1, help="About how many listings may be labelled.")] = 300,
    alpha_category: Annotated[float, typer.Option(help="Maximum error rate of prefilled categories.")] = 0.05,
    alpha_brand: Annotated[float, typer.Option(help="Maximum error rate of prefilled brands.")] = 0.02,
    delta: Annotated[float, typer.Option(help="Maximum probability that any guarantee fails.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    engine: Annotated[str, typer.Option(help="As for `calibrate`: what runs the bundle.")] = "onnxruntime",
    triton: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Triton that serves the bundle, to plan for its backend.")
    ] = None,
    decode_in: Annotated[DecodeIn, typer.Option(help="With --triton, as for `calibrate`.")] = "triton",
    rendition_px: Annotated[
        int | None, typer.Option("--rendition", min=16, help="As for `calibrate`: short side of the photos' copies.")
    ] = None,
    other_brands: Annotated[
        bool,
        typer.Option("--other-brands", help="A brand that the taxonomy lacks counts as out of scope, not as an error."),
    ] = False,
) -> None:
    """Draw the listings to label so that thresholds can be certified; `calibrate --plan` tests them.

    Example: listing-vision calibrate-plan bundles/grocery labelled.csv recent.csv --output to-label.csv
    """
    from training.calibration.certify import Guarantee
    from training.calibration.field_rows import FieldRows
    from training.calibration.label_plan import LabelPlan
    from training.calibration.label_planner import choose_thresholds, draw_listings, forecast_fields
    from training.calibration.splits import CalibrationListings, exclude_labelled, select_forecast_rows
    from vision.manifest import Manifest

    refuse_contradictions(engine=engine, triton=triton, decode_in=decode_in, rendition_px=rendition_px)
    plan_path = output.with_suffix(".plan.json")
    for path in (output, plan_path):
        if path.exists():
            raise ManifestError(f"{path} exists; a draw is never overwritten: give another --output")
    guarantee = Guarantee(alpha_category=alpha_category, alpha_brand=alpha_brand, delta=delta)
    loaded, known = load_bundle(bundle), Manifest.load(labelled)
    drawn_from = exclude_labelled(Manifest.load(unlabelled), known)
    with open_predictor(
        loaded, triton, decode_in, engine=engine, rendition_px=rendition_px, other_brands=other_brands
    ) as predictor:
        predictions = [predictor.predict(rows) for rows in (select_forecast_rows(known), drawn_from)]
    labelled_rows, unlabelled_rows = (
        FieldRows(CalibrationListings.from_predictions(one, loaded.taxonomy), loaded.taxonomy, loaded.calibration)
        for one in predictions
    )
    listing_ids = predictions[1].listing_ids
    forecasts = forecast_fields(labelled_rows, loaded.taxonomy, guarantee, num_unlabelled=len(listing_ids))
    chosen = choose_thresholds(forecasts, num_labels=labels)
    plan = LabelPlan(
        guarantee=guarantee,
        binding=certificate_binding(loaded.info, loaded.sha256, backend=predictor.backend),
        calibration_version=loaded.calibration_version,
        fields=draw_listings(chosen, unlabelled_rows, listing_ids, seed=seed),
    )
    for forecast in forecasts:
        typer.echo(_describe(forecast, plan, labels))
    if not plan.fields:
        raise ManifestError(f"no field can be planned with {labels} labels; the lines above say what it would take")
    _write(plan, drawn_from, output, plan_path)
    typer.echo(
        f"{output}: {len(plan.listing_ids)} of {len(listing_ids)} unlabelled listings to label; then "
        f"`listing-vision calibrate {bundle} {output} --plan {plan_path} --output NEW`"
    )


def _write(plan: "LabelPlan", drawn_from: "Manifest", output: Path, plan_path: Path) -> None:
    import pyarrow as pa

    from training.calibration.splits import select_listings
    from vision.manifest import PLANNED_SPLIT, Manifest

    rows = select_listings(drawn_from, plan.listing_ids).rebase(str(output.parent))
    table = rows.table.drop_columns(["split"]).append_column("split", pa.array([PLANNED_SPLIT] * len(rows)))
    plan.save(plan_path)
    Manifest.from_table(table, rows.base_url).save(str(output))


def _describe(forecast: "FieldForecast", plan: "LabelPlan", num_labels: int) -> str:
    from training.reporting.field_titles import format_field_title

    precision, title = f"{100 * (1 - forecast.alpha):g}%", format_field_title(forecast.name)
    planned = next((field for field in plan.fields if field.name == forecast.name), None)
    if planned:
        return f"{title}: {_describe_planned(forecast, planned, precision)}"
    if not forecast.thresholds:
        return f"{title}: not planned: no labelled listing has a prediction that can be prefilled"
    needs = [step.num_needed for step in forecast.thresholds if step.num_needed is not None]
    needed = f"takes at least {min(needs)} new labels" if needs else "is out of reach of any number of labels"
    return (
        f"{title}: not planned: {precision} precision {needed} at the present share of errors, and "
        f"{forecast.num_errorless} if all are right; {num_labels} are for all fields together"
    )


def _describe_planned(forecast: "FieldForecast", planned: "PlannedField", precision: str) -> str:
    from training.calibration.label_planner import POWER

    step = next(one for one in forecast.thresholds if one.threshold == planned.threshold)
    return (
        f"prefilled from a confidence of {planned.threshold:.3f}, for {planned.coverage:.0%} of the "
        f"unlabelled listings, if {len(planned.listing_ids)} new labels prove {precision} precision; they do with a "
        f"probability of {POWER:.0%} at the present share of errors ({step.num_errors} of {step.num_known}), and "
        f"{forecast.num_errorless} would if all were right"
    )
