from importlib import resources

import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.two_models import compare_rows, model
from training.comparison.gate import Gate, load_gate
from training.errors import GateError

TAXONOMY = create_small_taxonomy()
DEPTH_1 = {"category_depth_1": 0.5}


def outcomes(gate, rows, *, a=None, b=None):
    comparison = compare_rows(rows, a or model(TAXONOMY), b or model(TAXONOMY))
    return {rule.name: rule for rule in gate.check(comparison)}


def list_broken_rules(gate, rows, **models):
    return {name for name, rule in outcomes(gate, rows, **models).items() if not rule.holds}


SAME = [("gala", "Acme", ("gala", 1), ("gala", 1))] * 9
LOST = [("gala", "Acme", ("gala", 1), ("fuji", 1))]
WON = [("lemon", "Acme", ("gala", 1), ("lemon", 1))]


def test_a_model_passes_against_itself():
    assert not list_broken_rules(Gate(), SAME)


def test_the_overall_drop_is_named_with_its_numbers():
    rule = outcomes(Gate(), SAME + LOST)["max_overall_drop"]
    assert not rule.holds
    assert rule.details == (
        "leaf accuracy fell by 10.00 points, a fall of 0.00 is allowed: A 100.00%, B 90.00%; "
        "1 lost, 0 won of 10 listings, p 1",
    )
    assert not list_broken_rules(Gate(max_overall_drop=0.1), SAME + LOST)  # exactly the limit passes
    assert list_broken_rules(Gate(max_overall_drop=0.09), SAME + LOST) == {"max_overall_drop"}
    assert not list_broken_rules(Gate(), SAME + LOST + WON)


def test_one_category_may_break_what_the_whole_does_not_show():
    rows = SAME + LOST + WON
    gate = Gate(max_category_drop=0.05, min_category_listings=10)
    rule = outcomes(gate, rows)["max_category_drop"]
    assert not rule.holds
    assert rule.details[0].startswith("Fruit > Apple > Gala fell by 10.00 points")
    assert list_broken_rules(gate, rows) == {"max_category_drop"}
    # With a listing fewer in the category than the rule asks for it says nothing.
    spared = outcomes(Gate(max_category_drop=0.05, min_category_listings=11), rows)["max_category_drop"]
    assert (spared.holds, spared.num_checked) == (True, 0)


def test_brand_and_coverage():
    worse_brand = [("gala", "Acme", ("gala", 1), ("gala", 2))]
    assert list_broken_rules(Gate(), SAME + worse_brand) == {"max_brand_drop"}
    assert not list_broken_rules(Gate(max_brand_drop=0.1), SAME + worse_brand)
    unsure = [("gala", "Acme", ("gala", 1, 9.0), ("gala", 1, 0.1))]
    models = {
        "a": model(TAXONOMY, thresholds={"category_depth_1": 0.8}),
        "b": model(TAXONOMY, thresholds={"category_depth_1": 0.8}),
    }
    rule = outcomes(Gate(), SAME + unsure, **models)["max_coverage_drop"]
    assert rule.details == (
        "Category, depth 1: the filled share fell by 10.00 points, a fall of 0.00 is allowed: A 100.00% (10 of 10 "
        "listings), B 90.00% (9)",
    )
    assert list_broken_rules(Gate(), SAME + unsure, **models) == {"max_coverage_drop"}
    assert not list_broken_rules(Gate(max_coverage_drop=0.1), SAME + unsure, **models)
    # A model without a certificate fills nothing in, and is said to be one.
    uncertified = outcomes(Gate(), SAME, a=model(TAXONOMY, thresholds=DEPTH_1))["max_coverage_drop"]
    assert uncertified.details == (
        "B has no certificate: it fills nothing in, where A fills in category, depth 1; calibrate B",
    )
    assert list_broken_rules(Gate(), SAME, a=model(TAXONOMY, thresholds=DEPTH_1)) == {"max_coverage_drop"}
    assert not list_broken_rules(Gate(), SAME, b=model(TAXONOMY, thresholds=DEPTH_1))


def test_a_gate_without_a_leaf_to_judge_is_not_passed():
    rows = [("apple", "Acme", ("gala", 1), ("gala", 1))]
    assert list_broken_rules(Gate(), rows) == {"max_overall_drop"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.toml", "max_overall_drop = 0.02\nmin_category_listings = 5"),
        ("g.yaml", "# why\nmax_overall_drop: 0.02\nmin_category_listings: 5\n"),
        ("g.YML", "{max_overall_drop: 0.02, min_category_listings: 5}"),
    ],
)
def test_toml_and_yaml(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_gate(tmp_path / name) == Gate(max_overall_drop=0.02, min_category_listings=5)


def test_an_empty_file_is_the_defaults(tmp_path):
    for name in ("g.toml", "g.yaml"):
        (tmp_path / name).write_text("")
        assert load_gate(tmp_path / name) == Gate()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.toml", "max_overal_drop = 0", "unknown rule 'max_overal_drop'; nearest known: 'max_overall_drop'"),
        ("g.yaml", "max_catgory_drop: 0", "unknown rule 'max_catgory_drop'; nearest known: 'max_category_drop'"),
        ("g.yaml", "1: 0", "unknown rule 1"),
        ("g.toml", "max_overall_drop = 2", r"max_overall_drop = 2: use a share in 0\.\.1"),
        ("g.toml", "max_brand_drop = -0.1", "max_brand_drop = -0.1"),
        ("g.toml", "max_coverage_drop = nan", "max_coverage_drop = nan"),
        ("g.yaml", "max_category_drop: yes", "max_category_drop = True"),
        ("g.yaml", "max_category_drop: 5%", "max_category_drop = '5%'"),
        ("g.toml", "min_category_listings = 0", "min_category_listings = 0: use a whole number, at least 1"),
        ("g.toml", "min_category_listings = 2.5", "min_category_listings = 2.5"),
        ("g.toml", "max_overall_drop: 0", "is not TOML"),
        ("g.yaml", "[: ", "is not YAML"),
        ("g.yaml", "- max_overall_drop", "found a list instead of rules"),
        ("g.yaml", "max_overall_drop: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("g.json", "{}", r"ending '.json' is not one of .toml, .yaml, .yml"),
    ],
)
def test_wrong_gates_are_refused_by_name(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(GateError, match=said):
        load_gate(tmp_path / name)


def test_a_gate_that_is_not_there(tmp_path):
    with pytest.raises(GateError, match="no gate at"):
        load_gate(tmp_path / "g.toml")


def test_the_shipped_gate_loads():
    with resources.as_file(resources.files("training") / "gates" / "release.toml") as path:
        assert load_gate(path) == Gate()
