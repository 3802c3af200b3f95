"""A bundle with new guarantees: the same model, tested on other listings or with another backend."""

import shutil
from dataclasses import replace
from pathlib import Path

from training.calibration.calibrate import calibrate
from training.calibration.certify import Guarantee, certify_all
from training.calibration.field_rows import FieldRows
from training.calibration.growing import grow_guarantee
from training.calibration.label_plan import LabelPlan, certify_planned
from training.calibration.splits import CalibrationListings
from training.export.model_card import render_model_card
from training.inference.predictions import Predictions
from training.outcomes.hidden_listings import load_hidden_listings
from training.outcomes.tables import OutcomeTables
from training.reporting.provenance import format_time
from vision.bundle import (
    Bundle,
    certificate_binding,
    create_bundle,
    load_bundle,
    require_new_folder,
    seal_bundle,
)
from vision.calibration import Calibration
from vision.errors import ListingVisionError

__all__ = ["recalibrate", "recalibrate_from_outcomes", "recalibrate_from_plan", "recalibrate_from_scores"]

_DAY_US = 86_400_000_000


def recalibrate(
    bundle: Bundle,
    folder: Path,
    *,
    tune: Predictions,
    tested: Predictions | None,
    split: str,
    backend: str,
    guarantee: Guarantee,
    outside: Predictions | None = None,
) -> Bundle:
    """Write a bundle of the same model with new guarantees; `folder` appears when it is complete.

    Args:
        bundle: its weights, exports and golden photos are copied.
        folder: the new bundle.
        tune: predictions for the listings that temperatures and thresholds come from.
        tested: predictions for the listings that the tests are made on; None: four fifths of `tune`.
        split: their description for the certificate.
        backend: what computed the predictions.
        guarantee: what to certify.
        outside: predictions for photos of other things, for which the scope threshold is sharpened.

    Raises:
        BundleError: `folder` exists.
    """
    require_new_folder(folder)  # before the work
    calibration = calibrate(
        tune,
        bundle.taxonomy,
        certifies=_list_facts(bundle, backend=backend, split=split),
        calibration_predictions=tested,
        guarantee=guarantee,
        scope_threshold=bundle.calibration.scope_threshold,
        outside_scope_scores=None if outside is None else outside.scope_scores,
        category_log_prior=bundle.calibration.category_log_prior,
        brand_log_prior=bundle.calibration.brand_log_prior,
    )
    return _write_bundle(bundle, folder, calibration)


def recalibrate_from_scores(
    bundle: Bundle,
    folder: Path,
    *,
    scored: Predictions,
    tested: Predictions,
    split: str,
    backend: str,
    guarantee: Guarantee,
) -> Bundle:
    """Write a bundle whose thresholds are chosen from unlabelled scores, so that every labelled listing tests them.

    Temperatures and gates stay those of the bundle.

    Args:
        bundle: its weights, exports and golden photos are copied.
        folder: the new bundle.
        scored: predictions for listings like those in production; their labels are not read.
        tested: predictions for labelled listings that neither the weights nor the bundle's calibration have seen.
        split: their description for the certificate.
        backend: what computed the predictions.
        guarantee: what to certify.

    Raises:
        BundleError: `folder` exists.
    """
    require_new_folder(folder)
    fields = certify_all(
        CalibrationListings.from_predictions(scored, bundle.taxonomy),
        CalibrationListings.from_predictions(tested, bundle.taxonomy),
        bundle.taxonomy,
        bundle.calibration,
        guarantee,
        grids_from="all",
    )
    calibration = replace(
        bundle.calibration,
        fields=tuple(fields),
        delta=guarantee.delta,
        certifies=_list_facts(bundle, backend=backend, split=split),
    )
    return _write_bundle(bundle, folder, calibration)


def recalibrate_from_plan(
    bundle: Bundle, folder: Path, *, plan: LabelPlan, tested: Predictions, backend: str, guarantee: Guarantee
) -> Bundle:
    """Write a bundle whose guarantees come from the labels that a plan asked for, and from no other.

    Temperatures and gates stay those of the bundle.

    Args:
        bundle: its weights, exports and golden photos are copied.
        folder: the new bundle.
        plan: the thresholds to test, and the listings that each is tested on.
        tested: predictions for these listings, with their labels.
        backend: what computed the predictions.
        guarantee: what to certify: the planned one.

    Raises:
        BundleError: `folder` exists.
        ListingVisionError: the plan was made for another bundle, backend or guarantee.
    """
    require_new_folder(folder)
    plan.require_made_for(bundle, backend=backend, guarantee=guarantee)
    listings = CalibrationListings.from_predictions(tested, bundle.taxonomy)
    rows = FieldRows(listings, bundle.taxonomy, bundle.calibration)
    split = f"{len(plan.listing_ids)} listings drawn among those that the thresholds fill; temperatures as before"
    calibration = replace(
        bundle.calibration,
        fields=tuple(certify_planned(plan, rows, tested.listing_ids, bundle.taxonomy)),
        delta=guarantee.delta,
        certifies=_list_facts(bundle, backend=backend, split=split),
    )
    return _write_bundle(bundle, folder, calibration)


def recalibrate_from_outcomes(bundle: Bundle, folder: Path, *, tables: OutcomeTables, now_us: int) -> Bundle:
    """Write a bundle whose thresholds follow from the outcomes of hidden listings too; all else stays.

    Args:
        bundle: certified with a part of delta for outcomes; it may have grown before.
        folder: the new bundle.
        tables: suggestions and outcomes of the gateways that served it.
        now_us: the time, in microseconds since 1970; listings count once their waiting time is over.

    Raises:
        BundleError: `folder` exists.
        ListingVisionError: nothing is kept for outcomes, or no hidden listing of the bundle's rule can be counted.
    """
    require_new_folder(folder)
    plan = next((field.outcomes for field in bundle.calibration.fields if field.outcomes), None)
    if plan is None:
        raise ListingVisionError(
            f"bundle {bundle.folder} keeps no part of delta for outcomes; certify it with `calibrate --outcomes-delta "
            "0.01`, and serve that bundle: only outcomes of what it suggests can count"
        )
    until_us = now_us - plan.wait_days * _DAY_US
    listings = load_hidden_listings(tables, bundle, wait_days=plan.wait_days, after_us=plan.until_us, until_us=until_us)
    if len(listings.first_us) == 0:
        raise ListingVisionError(
            f"no hidden listing of this bundle, of those that are not counted yet, is {plan.wait_days} days old, the "
            "time in which outcomes may be reported; wait"
        )
    fields = (
        grow_guarantee(field, listings, bundle.taxonomy, until_us=until_us) if field.outcomes else field
        for field in bundle.calibration.fields
    )
    num_listings = plan.num_listings + len(listings.first_us)
    described = f"{num_listings} listings that were hidden before the answer, until {format_time(until_us / 1e6)}"
    if listings.num_other:
        others = ", ".join(f"{release} ({num})" for release, num in listings.num_other.items())
        described += f"; hidden suggestions of other rules are left out: {others}"
    files = tables.describe()["files_sha256"]
    certifies = {**bundle.calibration.certifies, "outcomes": described, "outcome_files": files}
    return _write_bundle(bundle, folder, replace(bundle.calibration, fields=tuple(fields), certifies=certifies))


def _list_facts(bundle: Bundle, *, backend: str, split: str) -> dict[str, str]:
    facts = certificate_binding(bundle.info, bundle.sha256, backend=backend)
    kept = {name: text for name, text in bundle.calibration.certifies.items() if name in ("selected_on", "outside")}
    return {**facts, **kept, "split": split}


def _write_bundle(bundle: Bundle, folder: Path, calibration: Calibration) -> Bundle:
    with create_bundle(folder) as building:
        for name in bundle.files:
            shutil.copy2(bundle.folder / name, building / name)
        (building / "calibration.json").write_text(calibration.to_json() + "\n")
        (building / "model_card.md").write_text(
            render_model_card(bundle.info, bundle.taxonomy, calibration), encoding="utf-8"
        )
        seal_bundle(building, bundle.info)
    return load_bundle(folder)
