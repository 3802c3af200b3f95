import json

from tests.support.helpers import create_small_taxonomy
from tests.support.two_models import create_listings, model
from training.comparison.compare import compare
from training.comparison.gate import Gate
from training.comparison.text_report import (
    ComparedModels,
    GateVerdict,
    build_comparison_json,
    format_comparison,
    format_verdict,
)
from training.evaluation.evaluate import replace_nan

MODELS = ComparedModels(
    name_a="old",
    name_b="new",
    taxonomy_a="1",
    taxonomy_b="2",
    manifest="m.csv",
    manifest_sha256="ab12",
    split="test",
    date="2026-11-28",
)
A = model(create_small_taxonomy(), thresholds={"category_depth_1": 0.9})
ROWS = [("gala", "", "gala", "fuji")] * 8 + [("lemon", "", "lemon", "lemon")] * 4 + [("nowhere", "", "gala", "gala")]
LISTINGS = create_listings(ROWS, A, A)
COMPARISON = compare(A, A, LISTINGS)


def test_the_table_says_what_changed_and_what_that_is_worth():
    lines = format_comparison(MODELS, COMPARISON, LISTINGS).splitlines()
    (leaf,) = [line for line in lines if line.startswith("  Leaf category ")]
    assert leaf.split() == [
        "Leaf",
        "category",
        "12",
        "100.0",
        "33.3",
        "-66.7",
        "-91.7",
        "–",
        "-41.7",
        "8",
        "0",
        "0.00781",
    ]
    assert "1 category worse:" in lines
    assert not any("better" in line for line in lines)
    assert any("8 lost, 0 won of 8, p = 0.0078, Holm 0.016  Fruit > Apple > Gala" in line for line in lines)
    assert any("2 categories compared, 1 with p < 0.05 taken alone (chance gives up to 0.1)" in line for line in lines)
    assert "not compared: 1 listing whose category is unknown to both ('nowhere')" in lines
    (brand,) = [line for line in lines if line.startswith("  Brand ") and "–" in line]
    assert brand.split()[:3] == ["Brand", "0", "-"]


def test_json_holds_every_figure_and_flip():
    gate = Gate(max_overall_drop=0.5)
    verdict = GateVerdict(gate=gate, rules=gate.check(COMPARISON))
    figures = json.loads(json.dumps(replace_nan(build_comparison_json(MODELS, COMPARISON, LISTINGS, verdict))))
    assert figures["fields"]["leaf"]["num_lost"] == 8
    assert figures["fields"]["brand"]["change"] is None
    assert figures["coverage"]["category_depth_1"]["a"]["coverage"] == 1
    assert len(figures["flips"]) == 8
    assert figures["flips"][0]["listing"] == "l0"
    assert figures["flips"][0]["photos"] == ["0.jpg"]
    assert figures["excluded_labels"] == [
        {"field": "category", "label": "nowhere", "reason": "unknown to both", "num_listings": 1}
    ]
    assert figures["gate"]["passed"] is False
    assert figures["gate"]["max_overall_drop"] == 0.5
    assert [rule["name"] for rule in figures["gate"]["rules"] if not rule["holds"]] == ["max_overall_drop"]
    assert build_comparison_json(MODELS, COMPARISON, LISTINGS, None)["gate"] is None


def test_a_rule_that_nothing_was_measured_for_says_so():
    gate = Gate(max_overall_drop=1)
    lines = format_verdict(GateVerdict(gate=gate, rules=gate.check(COMPARISON)))
    assert lines[0] == "gate passed"
    assert "  max_category_drop holds, nothing to measure it on: 0 categories with at least 20 listings" in lines
    assert "  max_brand_drop holds, nothing to measure it on: brand accuracy: no listing to measure it on" in lines
