import dataclasses
import json

import pytest

from tests.support.pages import ParsedPage
from training.outcomes.html_report import render_experiment, write_experiment
from training.outcomes.report import Drift, ShadowReport
from training.statistics.sequential import Interval

HOSTILE = "<script>alert(1)</script>\"'&"
PROVENANCE = {"outcomes": HOSTILE, "files_sha256": "ab12", "date": "2026-11-28 09:00 UTC"}


@pytest.fixture
def whole(report):
    """The report with a shadow and drift from a bundle too."""
    shadow = ShadowReport(
        field="brand",
        release="shadow",
        num_outcomes=180,
        accepted=0.9,
        shown_accepted=0.75,
        interval=Interval(-0.02, 0.31),
        unseen=True,
    )
    from_bundle = Drift(statistic="leaf_probability", release="old", stability=0.3, chance=0.02)
    return dataclasses.replace(
        report, shadows=[shadow], shadow_agreement={"shadow": (180, 0.75)}, drift=[*report.drift, from_bundle]
    )


def test_the_verdict_stands_first_and_provenance_follows(whole):
    text = render_experiment(whole, PROVENANCE)
    verdict, provenance = text.index("Switch off category, depth 3 of old"), text.index("<dd>ab12</dd>")
    assert text.index("<h1>") < verdict < provenance < text.index("<table")
    assert "<dt>release old</dt><dd>3000 listings</dd>" in text
    assert "<dt>counts</dt><dd>6000 outcomes</dd>" in text
    page = ParsedPage(text)
    assert page.all("script") == [{}]
    assert f"{HOSTILE}" in page.text
    assert len(page.all("caption")) == len(page.all("table")) == 6
    assert "category_depth" not in page.text


def test_every_figure_on_the_page_is_in_the_json(whole, tmp_path):
    figures, page = write_experiment(whole, PROVENANCE, tmp_path / "report")
    read, text = json.loads(figures.read_text()), page.read_text()
    assert read["provenance"] == PROVENANCE
    for one in read["fields"]:
        low, high = (f"{100 * end:.1f}" for end in one["accepted_interval"])
        accepted = f'{100 * one["accepted"]:.1f} <span class="small">{low}–{high}</span>'
        assert f"<td>{one['release']}</td><td>{one['num_outcomes']}</td><td>{accepted}</td>" in text
    for one in read["comparisons"]:
        low, high = (f"{100 * end:+.1f}" for end in one["interval"])
        assert f'{100 * one["difference"]:+.1f} <span class="small">{low} to {high}</span></td>' in text
    for one in read["drift"]:
        shown = "".join(
            f"<td>{cell}</td>" for cell in (f"{one['stability']:.3f}", f"{one['chance']:.3f}", one["grade"])
        )
        assert f"{shown}</tr>" in text
    (shadow,) = read["shadows"]
    assert f"<td>{shadow['num_outcomes']}</td><td>90.0</td><td>75.0</td><td>-2.0 to +31.0</td>" in text


def test_a_json_name_takes_the_figures_alone(report, tmp_path):
    (alone,) = write_experiment(report, PROVENANCE, tmp_path / "new" / "figures.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figures.json"]
    assert json.loads(alone.read_text())["listings_by_release"] == {"new": 3000, "old": 3000}
