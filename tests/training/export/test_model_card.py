import dataclasses

import pytest

from tests.support.bundles import copy_version_0_1_bundle
from training.export.model_card import format_guarantees, render_model_card
from vision.bundle import load_bundle
from vision.calibration import DepthEvidence, FieldGuarantee


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return load_bundle(copy_version_0_1_bundle(tmp_path_factory.mktemp("stored")))


def certify_first_field(calibration):
    first, *rest = calibration.fields
    certified = dataclasses.replace(first, threshold=0.9, num_listings=200, num_filled=150, num_errors=3)
    return dataclasses.replace(calibration, fields=(certified, *rest))


def test_every_field_has_its_line(stored):
    lines = format_guarantees(certify_first_field(stored.calibration))
    assert len(lines) == len(stored.calibration.fields)
    assert lines[0] == (
        "Category, depth 1: prefilled from a confidence of 0.900, for 75% of the calibration listings; guaranteed "
        "precision 95% (3 of 150 were wrong)"
    )
    assert all("never prefilled, only suggested: " in line for line in lines[1:])


def test_the_card_holds_the_guarantees_and_the_metrics(stored):
    card = render_model_card(stored.info, stored.taxonomy, certify_first_field(stored.calibration))
    assert card.startswith(f"# {stored.info.model_name} {stored.info.model_version}\n\n")
    assert "| Category, depth 1 | 95% | 0.9000 | 150 of 200 prefilled, 3 wrong |\n" in card
    assert "| Brand | 98% | never prefilled | 10 calibration listings are too few" in card
    assert "- Brands added without training: none\n\n## Accuracy\n\nNo figures on a test split were recorded.\n" in card
    assert "together with probability at least\n95%." in card
    assert "&" not in card  # Markdown is not escaped as HTML


def test_listings_drawn_among_those_that_a_threshold_fills_are_not_its_coverage(stored):
    certified = certify_first_field(stored.calibration)
    first = dataclasses.replace(certified.fields[0], num_listings=150, unlabelled_coverage=0.4)
    planned = dataclasses.replace(certified, fields=(first, *certified.fields[1:]))
    assert "for 40% of the unlabelled listings; guaranteed" in format_guarantees(planned)[0]
    card = render_model_card(stored.info, stored.taxonomy, planned)
    assert "| 0.9000 | 150 drawn among the 40% that are prefilled, 3 wrong |\n" in card


def test_the_card_says_what_scope_and_agreement_do(stored):
    card = render_model_card(stored.info, stored.taxonomy, stored.calibration)
    assert "A product outside the taxonomy gets the nearest known category" in card
    gated = dataclasses.replace(
        stored.calibration, scope_threshold=-0.9781, agreement_limit=0.02, certifies={"outside": "3 of 100 pass"}
    )
    card = render_model_card(stored.info, stored.taxonomy, gated)
    assert "A photo with a scope score below -0.978 shows nothing that the taxonomy covers" in card
    assert "With this threshold, 3 of 100 pass." in card
    assert "less than 0.02 of its own first choice, the photos\n  disagree" in card
    assert "and the brand (one of" in card
    without = dataclasses.replace(stored.taxonomy, brands=())
    assert "brand (one of" not in render_model_card(stored.info, without, gated)


def test_a_converted_model_and_added_brands_are_named(stored):
    converted = {"how": "rounding", "top1_loss": 0.0, "num_photos": 9, "photos_per_s_one_thread": {"fp32": 50.0}}
    added = [{"name": "Öko", "num_photos": 3}, {"name": "Pink", "num_photos": 5}]
    begun = {"weights_version": "1f3a0c2b9d4e"}
    training = {**stored.info.training, **begun, "converted": converted, "brands_added": added}
    card = render_model_card(dataclasses.replace(stored.info, training=training), stored.taxonomy, stored.calibration)
    assert "- Brands added without training: Öko (3 photos), Pink (5 photos)\n" in card
    assert " weights (1f3a0c2b9d4e); versions" in card
    assert "by rounding: +0.00 points of top-1 against fp32 on 9 tune photos; photos/s" in card
    assert "that converted it: fp32 50\n\n## Accuracy" in card


def test_a_path_is_shown_with_what_it_did_at_each_depth(stored):
    path = FieldGuarantee(
        name="category_path", alpha=0.05, delta=0.025, threshold=0.9, num_listings=200, num_filled=150, num_errors=3,
        depths=(DepthEvidence(depth=1, num_listings=200, num_filled=150, num_errors=0),), num_below_truth=1,
    )  # fmt: skip
    calibration = dataclasses.replace(stored.calibration, fields=(path,), delta=0.05)
    lines = format_guarantees(calibration)
    assert lines[1] == "  depth 1: 150 of 200 prefilled, 0 wrong (0.0%-2.4%; measured, not guaranteed)"
    assert lines[2].startswith("  1 of the errors are categories below a label")
    card = render_model_card(stored.info, stored.taxonomy, calibration)
    assert "together with probability at least\n95%." in card
    assert f"\n- {lines[1].strip()}\n" in card


def test_figures_on_test_and_what_the_model_was_trained_on_are_shown(bundle):
    card = (bundle.folder / "model_card.md").read_text(encoding="utf-8")
    test = bundle.info.training["test"]["category"]
    assert f"| category | {test['num']} | {test['top1']:.1%} | " in card.replace(" %", "%")
    assert f"- Data: {bundle.info.training['photos']['train']} photos of train, " in card


def test_each_export_that_the_bundle_has_is_compared(stored):
    def list_exports(parity):
        info = dataclasses.replace(stored.info, parity=parity)
        lines = render_model_card(info, stored.taxonomy, stored.calibration).partition("| export |")[2].splitlines()
        return [line.split(" | ")[0] for line in lines if line.startswith(("| onnx", "| torchscript", "| aot"))]

    parity = stored.info.parity
    assert list_exports(parity) == ["| onnx", "| torchscript"]
    compiled = {"aot_inductor": {**parity["onnx"], "compiled_for": "x86_64 avx2"}}
    assert list_exports({**parity, **compiled}) == ["| onnx", "| torchscript", "| aot_inductor"]
