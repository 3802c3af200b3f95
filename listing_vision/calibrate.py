"""The verb `calibrate`: certify thresholds again, on other listings or with the backend that will serve."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from listing_vision.calibration_engine import DecodeIn, ManifestPredictor, open_predictor, refuse_contradictions
from vision.bundle import Bundle, load_bundle, require_new_folder

if TYPE_CHECKING:
    from training.calibration.certify import Guarantee
    from vision.manifest import Manifest

__all__ = ["calibrate", "calibration_app"]

_log = logging.getLogger(__name__)

calibration_app = typer.Typer()


@calibration_app.command()
def calibrate(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    manifest: Annotated[
        str | None,
        typer.Argument(
            help="Manifest with a val split, and a calibrate split if there is one; not with --from-outcomes."
        ),
    ] = None,
    tune_split: Annotated[
        str | None, typer.Option(help="Split for temperatures and candidate thresholds; val by default.")
    ] = None,
    alpha_category: Annotated[float, typer.Option(help="Maximum error rate of prefilled categories.")] = 0.05,
    alpha_brand: Annotated[float, typer.Option(help="Maximum error rate of prefilled brands.")] = 0.02,
    categories: Annotated[
        Literal["path", "depth"],
        typer.Option(
            help="path: one guarantee for the deepest prefilled category. depth: one for each depth, which needs more "
            "listings."
        ),
    ] = "path",
    delta: Annotated[float, typer.Option(help="Maximum probability that any guarantee fails.")] = 0.05,
    outcomes_delta: Annotated[
        float, typer.Option(help="Part of --delta that is kept for outcomes, which --from-outcomes reads later.")
    ] = 0.0,
    from_outcomes: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="What `serve --outcomes` wrote while it served BUNDLE, which was certified with --outcomes-delta: the "
            "outcomes of listings that were hidden at random certify looser thresholds, or withdraw them. All else "
            "stays as it is.",
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="MANIFEST",
            help="Unlabelled listings like those in production. Candidate thresholds come from their scores, "
            "temperatures stay those of BUNDLE, and the whole calibrate split tests.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="What `calibrate-plan` wrote beside the listings to label: its thresholds alone are tested, on its "
            "listings of MANIFEST, which now have labels. Temperatures stay those of BUNDLE."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the bundle, and is certified: onnxruntime, or aot-inductor for its model.pt2; not with "
            "--triton."
        ),
    ] = "onnxruntime",
    triton: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Triton that serves the bundle, to certify its backend.")
    ] = None,
    decode_in: Annotated[
        DecodeIn,
        typer.Option(
            help="With --triton, as for `serve`: triton, if its model can decode; or gateway, which backfills use too."
        ),
    ] = "triton",
    rendition_px: Annotated[
        int | None,
        typer.Option(
            "--rendition",
            min=16,
            help="Short side in pixels, if the manifest's photos are copies of that size (`data shard --max-px`): the "
            "guarantee is then that of `backfill --rendition`. Default: originals.",
        ),
    ] = None,
    other_brands: Annotated[
        bool,
        typer.Option("--other-brands", help="A brand that the taxonomy lacks counts as out of scope, not as an error."),
    ] = False,
    outside: Annotated[
        list[Path] | None,
        typer.Option(
            "--outside",
            help="Photos, or folders of them, of things that the taxonomy does not cover; no labels are needed. The "
            "scope threshold is raised until at most 3 % of them pass, as long as at most 3 % of the tune listings are "
            "lost.",
        ),
    ] = None,
) -> None:
    """Certify the thresholds of each field again; writes a new bundle with the same weights.

    Guarantees are tested on the manifest's calibrate split, or on four fifths of the tune split where there is none.

    Example: listing-vision calibrate bundles/grocery data/grocery/manifest.parquet --output bundles/grocery-2
    """
    if from_outcomes:
        _refuse_options(context, besides=("bundle", "output", "from_outcomes"))
        return _echo_guarantees(_read_outcomes(from_outcomes, load_bundle(bundle), output), output)
    if manifest is None:
        raise typer.BadParameter("give a MANIFEST with labels, or --from-outcomes URL")
    from training.calibration.certify import Guarantee
    from training.calibration.splits import refuse_planned_rows
    from vision.manifest import Manifest

    refuse_contradictions(engine=engine, triton=triton, decode_in=decode_in, rendition_px=rendition_px)
    if (scores or plan) and tune_split:
        raise typer.BadParameter("with --scores or --plan nothing is tuned; leave --tune-split out")
    if (scores or plan) and outside:
        raise typer.BadParameter("with --scores or --plan the scope threshold stays as it is; leave --outside out")
    if scores and plan:
        raise typer.BadParameter("the thresholds come from the plan; leave --scores out")
    guarantee = Guarantee(
        alpha_category=alpha_category,
        alpha_brand=alpha_brand,
        delta=delta,
        categories=categories,
        outcomes_delta=outcomes_delta,
    )
    require_new_folder(output)
    outside_rows = _list_outside_photos(outside) if outside else None
    loaded, rows = load_bundle(bundle), Manifest.load(manifest)
    if plan is None:
        refuse_planned_rows(rows)
    with open_predictor(
        loaded, triton, decode_in, engine=engine, rendition_px=rendition_px, other_brands=other_brands
    ) as predictor:
        work = _Calibration(
            bundle=loaded,
            rows=rows,
            predictor=predictor,
            output=output,
            guarantee=guarantee,
        )
        if plan:
            written = work.test_plan(plan)
        elif scores:
            written = work.test_thresholds_of(Manifest.load(scores))
        else:
            written = work.fit_and_test(tune_split or "val", outside_rows)
    _echo_guarantees(written, output)


def _echo_guarantees(written: Bundle, output: Path) -> None:
    from training.export.model_card import format_guarantees

    for line in format_guarantees(written.calibration):
        typer.echo(line)
    split = written.calibration.certifies["split"]
    typer.echo(f"bundle {output}: {written.info.model_name} {written.info.model_version}, calibrated on {split}")


def _refuse_options(context: typer.Context, *, besides: tuple[str, ...]) -> None:
    """Raise a usage error for options that would have no effect."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in besides and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"with --from-outcomes, what is guaranteed was fixed when the bundle was certified; leave {name} out"
            )


def _read_outcomes(url: str, bundle: Bundle, output: Path) -> Bundle:
    from training.export.recalibrate import recalibrate_from_outcomes
    from training.outcomes.tables import open_tables

    with open_tables(url, {bundle.release: bundle.taxonomy}) as tables:
        return recalibrate_from_outcomes(bundle, output, tables=tables, now_us=time.time_ns() // 1000)


@dataclass(frozen=True, kw_only=True)
class _Calibration:
    """The ways to write a bundle with other guarantees, for the predictions of one engine."""

    bundle: Bundle
    rows: "Manifest"
    """With labels."""
    predictor: ManifestPredictor
    output: Path
    guarantee: "Guarantee"

    def fit_and_test(self, tune_split: str, outside_rows: "Manifest | None") -> Bundle:
        """Fit temperatures and candidate thresholds on the tune split, and test them on other listings."""
        from training.calibration.splits import split_calibration_rows
        from training.export.recalibrate import recalibrate

        tune_rows, tested_rows, split = split_calibration_rows(self.rows, tune_split=tune_split)
        if tested_rows is None:
            _log.warning(
                "the manifest has no calibrate split: the guarantee is tested on %s, which models may have been "
                "selected on; for real use keep listings for it (`data split --calibrate 0.1`)",
                tune_split,
            )
        return recalibrate(
            self.bundle,
            self.output,
            tune=self.predictor.predict(tune_rows),
            tested=self.predictor.predict(tested_rows) if tested_rows else None,
            split=split,
            backend=self.predictor.backend,
            guarantee=self.guarantee,
            outside=self.predictor.predict(outside_rows) if outside_rows else None,
        )

    def test_thresholds_of(self, unlabelled: "Manifest") -> Bundle:
        """Test thresholds from the scores of unlabelled listings on the whole calibrate split."""
        from training.calibration.splits import CALIBRATION_SPLIT, exclude_labelled, select_tested_rows
        from training.export.recalibrate import recalibrate_from_scores

        tested_rows = select_tested_rows(self.rows)
        return recalibrate_from_scores(
            self.bundle,
            self.output,
            scored=self.predictor.predict(exclude_labelled(unlabelled, self.rows)),
            tested=self.predictor.predict(tested_rows),
            split=f"{CALIBRATION_SPLIT}; thresholds to test from unlabelled listings; temperatures as before",
            backend=self.predictor.backend,
            guarantee=self.guarantee,
        )

    def test_plan(self, path: Path) -> Bundle:
        """Test the thresholds of a plan on the listings that it drew."""
        from training.calibration.label_plan import LabelPlan
        from training.calibration.splits import select_listings
        from training.export.recalibrate import recalibrate_from_plan

        plan = LabelPlan.load(path)
        return recalibrate_from_plan(
            self.bundle,
            self.output,
            plan=plan,
            tested=self.predictor.predict(select_listings(self.rows, plan.listing_ids)),
            backend=self.predictor.backend,
            guarantee=self.guarantee,
        )


def _list_outside_photos(paths: list[Path]) -> "Manifest":
    """Each photo as a listing that the taxonomy does not cover."""
    from listing_vision.classify_table import find_photos
    from vision.manifest import OUT_OF_SCOPE_LABEL, Manifest

    return Manifest.from_rows(
        [
            {"listing_id": str(path), "photo": str(path.absolute()), "category": OUT_OF_SCOPE_LABEL}
            for path in find_photos(paths)
        ],
        "",
    )
