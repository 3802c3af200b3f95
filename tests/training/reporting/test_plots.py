import re
from xml.etree import ElementTree

import pytest

from training.reporting.plots import plot_reliability, plot_risk_coverage, plot_shares

POINTS = [
    {"coverage": 0.5, "precision": 1.0, "precision_interval": (0.8, 1.0)},
    {"coverage": 1.0, "precision": 0.9, "precision_interval": (0.85, 0.93)},
]
CERTIFIED = {"alpha": 0.05, "num_filled": 7, "coverage": 0.8, "precision": 0.96, "precision_interval": (0.9, 0.98)}
BINS = [{"confidence": 0.7, "accuracy": 0.5, "accuracy_interval": (0.2, 0.8)}]


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag == "text"]


def test_the_certified_point_is_marked_where_there_is_one():
    with_it = texts(plot_risk_coverage({"points": POINTS, "certified": CERTIFIED}, key="a", label="x"))
    assert {"certified", "guaranteed 95 %", "coverage, %", "precision, %", "95 % interval"} <= set(with_it)
    without = texts(plot_risk_coverage({"points": POINTS, "certified": None}, key="a", label="x"))
    assert not {"certified", "guaranteed 95 %"} & set(without)
    nothing_filled = {**CERTIFIED, "num_filled": 0, "precision": None}
    drawn = texts(plot_risk_coverage({"points": POINTS, "certified": nothing_filled}, key="a", label="x"))
    assert "certified" not in drawn
    assert "guaranteed 95 %" in drawn


def test_both_calibrations_are_drawn():
    assert {"before", "after"} <= set(texts(plot_reliability(BINS, BINS, key="a", label="x")))
    alone = texts(plot_reliability([], BINS, key="a", label="x"))
    assert "as it is" in alone
    assert "calibrated" not in alone


@pytest.mark.parametrize("name", ["<script>&\"'", "$x$ \\frac{", "日本語", "", "a" * 200])
def test_hostile_names_are_text(name):
    svg = plot_shares([name], [0.5], [(0.4, 0.6)], key="a", label=f"of {name}")
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == f"of {name}"
    shown = name if len(name) <= 32 else "a" * 31 + "…"
    assert name == "" or shown in texts(svg)
    assert not [element for element in root.iter() if element.tag == "script"]


def test_a_plot_is_the_same_each_time_and_has_ids_of_its_own():
    once, again = (plot_risk_coverage({"points": POINTS, "certified": CERTIFIED}, key="a", label="x") for _ in range(2))
    assert once == again
    other = plot_risk_coverage({"points": POINTS, "certified": CERTIFIED}, key="b", label="x")
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (once, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"#(\w+)\)", once)) <= ids[0]


def test_a_plot_has_the_colour_of_the_page_and_asks_for_nothing():
    svg = plot_shares(["a", "b"], [0.5, 1.0], [(0.4, 0.6), (0.9, 1.0)], key="a", label="x")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "http" not in svg
    assert 'role="img"' in svg
