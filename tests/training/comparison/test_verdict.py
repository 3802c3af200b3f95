import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.two_models import compare_rows, model
from training.comparison.gate import Gate
from training.comparison.text_report import GateVerdict
from training.comparison.verdict import RULE_NAMES, build_comparison_verdict, describe_rule

TAXONOMY = create_small_taxonomy()
SAME = [("gala", "acme", ("gala", 1), ("gala", 1))] * 10
LOST = [("gala", "acme", ("gala", 1), ("fuji", 1))]
CERTIFIED = {"category_depth_1": 0.5}


def build(rows, *, gate=None, a=None, b=None):
    comparison = compare_rows(rows, model(TAXONOMY, thresholds=a), model(TAXONOMY, thresholds=b))
    return build_comparison_verdict(comparison, GateVerdict(gate=gate, rules=gate.check(comparison)) if gate else None)


def test_the_first_sentence_decides():
    assert build(SAME, gate=Gate())[0] == "B may replace A: it keeps every rule of the gate."
    assert (
        build(SAME + LOST, gate=Gate())[0]
        == "B may not replace A: it does not keep the gate's rule for the leaf accuracy."
    )
    assert build(SAME)[0].startswith("No gate was given")


def test_chance_is_told_from_change():
    assert "which may be chance" in build(SAME + LOST)[1]
    assert "1 lost, 0 won" in build(SAME + LOST)[1]
    assert "more than chance explains" in build(SAME + LOST * 8)[1]
    assert build(SAME)[1] == "Leaf category: no change; both models are right on the same 10 of 10 listings."
    assert build([("apple", "", "gala", "gala")])[1] == "Leaf category: no listing to compare on."


def test_a_model_without_certificate_is_said_to_be_one():
    assert not any("certificate" in sentence for sentence in build(SAME, a=CERTIFIED, b=CERTIFIED))
    assert build(SAME, a=CERTIFIED)[-1] == "B has no certificate: it fills nothing in and only suggests."


def test_what_is_no_longer_filled_in_is_said():
    filled = "100.0% of the listings (100.0% of these right, 95% guaranteed)"
    assert build(SAME, a=CERTIFIED)[3] == f"Category, depth 1: A fills in {filled}, B nothing."
    assert build(SAME, a=CERTIFIED, b=CERTIFIED)[3:] == [f"Category, depth 1: both fill in {filled}."]


@pytest.mark.parametrize("name", RULE_NAMES)
def test_every_rule_says_its_limit(name):
    assert "may fall by at most 3 points" in describe_rule(Gate(**{name: 0.03}), name)
