"""docs/benchmarks.md and README's comparison are rendered from the committed results."""

import copy
import json

import jinja2
import pytest

from scripts.benchmark_tables import render_page, render_readme
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def results():
    return {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}


def test_the_committed_pages_are_current(results):
    page = render_page(results)
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render_readme(readme, page) == readme


def test_every_result_is_on_the_page(results):
    page = render_page(results)
    for name, result in results.items():
        assert f"{result['date']}, commit {result['commit']}. Rerun: `" in page, name


def test_a_figure_follows_its_result(results):
    other = copy.deepcopy(results)
    other["faults"]["metrics"]["kill_triton_recovery_s"] = 17.25
    assert "17.2 s" not in render_page(results)
    assert "| Triton killed (SIGKILL) | 17.2 s |" in render_page(other)


def test_a_better_peer_is_bold_whichever_it_is(results):
    other = copy.deepcopy(results)
    for peer, rate, p99_ms in (("litserve", 5.0, 5.0), ("bentoml", 50.0, 50.0), ("plain_grpc", 10.0, 10.0)):
        other["serving"]["metrics"] |= {f"{peer}_photos_per_s_c32": rate, f"{peer}_p99_ms_c8": p99_ms}
    other["serving"]["metrics"] |= {"photos_per_s_c32": 10.0, "p99_ms_c8": 10.0}
    page = render_page(other)
    assert "| 10.0 photos/s | 10.0 (ONNX Runtime behind gRPC), **50.0** (BentoML), 5.0 (LitServe) |" in page
    assert "| 10 ms | 10 ms (ONNX Runtime behind gRPC), 50 ms (BentoML), **5 ms** (LitServe) |" in page


def test_a_metric_that_is_missing_is_an_error(results):
    other = copy.deepcopy(results)
    del other["soak"]["metrics"]["calls"]
    with pytest.raises(jinja2.UndefinedError, match="calls"):
        render_page(other)


def test_what_was_not_compared_with_an_earlier_commit_yet_has_no_section(results):
    metrics = {"listings": 1000, "filled_categories": 700, "filled_brands": 50}
    for server in ("gateway", "backfill"):
        metrics |= {f"{server}_changed_{what}": 3 for what in ("actions", "categories", "brands")}
        metrics |= {f"{server}_max_{what}_difference": 2e-6 for what in ("logit", "embedding")}
    result = {**results["serving"], "metrics": metrics, "details": {"photos": 2000, "before": "7505613"}}
    title = "### The same answers as an earlier commit"
    assert title not in render_page({name: one for name, one in results.items() if name != "same_answers"})
    page = render_page({**results, "same_answers": result})
    assert title in page
    assert "| action | 3 | 3 |" in page
    assert "The largest difference of a logit is 2.0e-06 in the gateway" in page


def test_a_readme_without_the_marks_is_an_error(results):
    with pytest.raises(SystemExit, match="comparison: begin"):
        render_readme("# listing-vision", render_page(results))
