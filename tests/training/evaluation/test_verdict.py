import pytest

from training.evaluation.verdict import build_verdict, describe_certificate
from vision.calibration import Calibration


def create_field(**changes):
    return {
        "alpha": 0.05,
        "threshold": 0.9,
        "uncertified_sentence": "",
        "coverage": 0.6,
        "num_judged": 50,
        "precision": 0.98,
        "precision_interval": (0.96, 0.995),
    } | changes


def build(**fields):
    accuracy = {"top1": None, "top1_interval": (None, None)}
    return build_verdict({"listing": {"fields": fields, "leaf": accuracy, "brand": accuracy}})


def test_confirmed_guarantees_may_be_released():
    first, category = build(category_path=create_field())
    assert first == "May be released to fill in category: these listings confirm the guarantees."
    assert category == (
        "Category: filled in for 60.0% of the listings; 98.0% of these are right (96.0% to 99.5%), "
        "at least 95% is guaranteed."
    )


@pytest.mark.parametrize(
    ("interval", "said"),
    [((0.90, 0.99), "too few to confirm"), ((0.80, 0.94), "Do not release with filling in: category")],
)
def test_what_the_listings_do_not_confirm_is_said(interval, said):
    assert said in build(category_path=create_field(precision_interval=interval))[0]


def test_listings_that_the_guarantees_were_made_on_do_not_confirm_them():
    calibration = Calibration(certifies={"split": "val, four fifths of the listings by hash of listing id"})
    certificate = describe_certificate(calibration, split="val")
    assert not certificate["is_independent"]
    assert describe_certificate(calibration, split="test")["is_independent"]
    figures = {"listing": {"fields": {"brand": create_field()}, "leaf": {"top1": None}, "brand": {"top1": None}}}
    first, _ = build_verdict({**figures, "certificate": certificate})
    assert "These listings cannot confirm the guarantees, which were made on val, four fifths" in first
    broken = create_field(precision_interval=(0.5, 0.8))
    figures["listing"]["fields"] = {"brand": broken}
    assert build_verdict({**figures, "certificate": certificate})[0].startswith("Do not release")


def test_how_deep_a_path_is_filled_in_is_said():
    depths = {f"category_depth_{depth}": {"certified": {"coverage": 1 - 0.2 * depth}} for depth in (1, 2, 3)}
    selective = {**depths, "brand": {"certified": {"coverage": 1.0}}}
    accuracy = {"leaf": {"top1": None}, "brand": {"top1": None}}
    fields = {"category_path": create_field()}
    _, category = build_verdict({"listing": {"fields": fields, "selective": selective, **accuracy}})
    assert "60.0% of the listings (60.0% down to depth 2, 40.0% down to depth 3); 98.0%" in category


def test_a_broken_guarantee_outweighs_one_that_is_kept():
    broken = create_field(precision_interval=(0.5, 0.8))
    assert build(category_path=create_field(), brand=broken)[0].startswith("Do not release with filling in: brand")


def test_nothing_certified_only_suggests():
    assert build()[0].startswith("This model has no certificate")
    never = create_field(threshold=None, uncertified_sentence="Too few listings.")
    assert build(brand=never) == [
        "This model fills nothing in: no field is certified. It may be released to suggest only.",
        "Brand: never filled in. Too few listings.",
    ]
    unlabelled = build(brand=create_field(num_judged=0, precision_interval=(0.0, 1.0)))
    assert "none of them has a label" in unlabelled[1]


def test_how_often_the_model_is_right_is_said_without_a_certificate_too():
    leaf, brand = {"top1": 0.882, "top1_interval": (0.84, 0.914)}, {"top1": float("nan"), "top1_interval": (0.0, 1.0)}
    _, accuracy = build_verdict({"listing": {"fields": {}, "leaf": leaf, "brand": brand}})
    assert accuracy == (
        "The likeliest leaf category, filled in or not, is right for 88.2% of the labelled listings (84.0% to 91.4%)."
    )
