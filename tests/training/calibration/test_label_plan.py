import dataclasses
import logging

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.predictions import create_predictions
from training.calibration.certify import Guarantee
from training.calibration.field_rows import FieldRows
from training.calibration.label_plan import LabelPlan, PlannedField, certify_planned
from training.calibration.splits import CalibrationListings
from vision.bundle import certificate_binding
from vision.calibration import PATH_FIELD, Calibration
from vision.errors import ListingVisionError
from vision.manifest import UNLABELLED, Labels

TAXONOMY = create_small_taxonomy()
NAMES = [f"l{number}" for number in range(200)]


def create_plan(*, names=NAMES, threshold=0.5, **changes):
    fields = (PlannedField(name=PATH_FIELD, threshold=threshold, coverage=0.4, listing_ids=tuple(names)),)
    settings = {"guarantee": Guarantee(), "binding": {}, "calibration_version": "0" * 12, "fields": fields}
    return LabelPlan(**settings | changes)


def certify(plan, *, num_listings=200, num_wrong=0, num_unlabelled=0):
    """The guarantee of the path, after the first listings were labelled as wrong, and the last ones not at all."""
    leaves = np.arange(num_listings) % 2
    logits = np.zeros((num_listings, 4))
    logits[np.arange(num_listings), leaves] = 6
    truth = np.where(np.arange(num_listings) < num_wrong, 3 - leaves, leaves)
    made = create_predictions(logits, truth)
    nodes = np.where(np.arange(num_listings) >= num_listings - num_unlabelled, UNLABELLED, made.labels.category_nodes)
    made = dataclasses.replace(made, labels=Labels(category_nodes=nodes, brands=made.labels.brands))
    rows = FieldRows(CalibrationListings.from_predictions(made, TAXONOMY), TAXONOMY, Calibration(certifies={}))
    return certify_planned(plan, rows, NAMES[:num_listings], TAXONOMY)[0]


def test_the_planned_threshold_is_certified_with_the_coverage_among_the_listings_drawn_from():
    path = certify(create_plan())
    assert (path.threshold, path.grid) == (0.5, (0.5,))
    assert (path.num_listings, path.num_filled, path.num_errors) == (200, 200, 0)
    assert path.coverage == 0.4
    assert [depth.num_filled for depth in path.depths] == [200, 200, 200]


def test_the_other_fields_are_not_certified():
    leaves = np.zeros(3, int)
    listings = CalibrationListings.from_predictions(create_predictions(np.eye(4)[leaves], leaves), TAXONOMY)
    rows = FieldRows(listings, TAXONOMY, Calibration(certifies={}))
    brand = certify_planned(create_plan(), rows, NAMES[:3], TAXONOMY)[-1]
    assert (brand.name, brand.threshold) == ("brand", None)
    assert brand.uncertified_reason == "the plan has no listings for this field"


@pytest.mark.parametrize(
    ("missing", "num_counted"),
    [({"num_wrong": 20}, 0), ({"num_listings": 180}, 20), ({"num_unlabelled": 20}, 20)],
    ids=["wrong", "missing", "unlabelled"],
)
def test_missing_and_unlabelled_listings_count_as_wrong(missing, num_counted, caplog):
    with caplog.at_level(logging.WARNING):
        path = certify(create_plan(), **missing)
    assert (path.threshold, path.coverage) == (None, 0.0)
    assert "fills 200 of 200 calibration listings, 20 of them wrongly" in path.uncertified_reason
    warning = f"{num_counted} of 200 planned listings are missing or have no label, and count as wrong"
    assert (warning in caplog.text) == (num_counted > 0)


def test_a_listing_that_is_no_longer_filled_counts_as_wrong():
    path = certify(create_plan(threshold=0.999999))
    assert "200 of them wrongly" in path.uncertified_reason


def test_listings_that_the_plan_does_not_name_are_no_evidence():
    path = certify(create_plan(names=NAMES[100:]), num_wrong=100)
    assert (path.threshold, path.num_listings, path.num_errors) == (0.5, 100, 0)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = create_plan(threshold=1 / 3)
    plan.save(tmp_path / "to-label.plan.json")
    assert LabelPlan.load(tmp_path / "to-label.plan.json") == plan
    assert plan.listing_ids == set(NAMES)


@pytest.mark.parametrize("text", ["no json", "[]", '{"schema_version": 1}', '{"schema_version": 2}'])
def test_what_is_no_plan_is_refused(text, tmp_path):
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ListingVisionError, match=r"plan .*wrong.json"):
        LabelPlan.load(tmp_path / "wrong.json")


def test_a_plan_is_for_one_model_backend_calibration_and_guarantee(bundle):
    backend = "onnxruntime-cpu"
    plan = create_plan(
        binding=certificate_binding(bundle.info, bundle.sha256, backend=backend),
        calibration_version=bundle.calibration_version,
    )
    plan.require_made_for(bundle, backend=backend, guarantee=Guarantee())
    with pytest.raises(ListingVisionError, match=r"made for backend onnxruntime-cpu, not libtorch-cuda: .* plan again"):
        plan.require_made_for(bundle, backend="libtorch-cuda", guarantee=Guarantee())
    with pytest.raises(ListingVisionError, match=r"made for alpha_brand 0.02, not 0.1; give --alpha-brand 0.02"):
        plan.require_made_for(bundle, backend=backend, guarantee=Guarantee(alpha_brand=0.1))
    with pytest.raises(ListingVisionError, match=r"made for calibration_version 000000000000, not"):
        dataclasses.replace(plan, calibration_version="0" * 12).require_made_for(
            bundle, backend=backend, guarantee=Guarantee()
        )
