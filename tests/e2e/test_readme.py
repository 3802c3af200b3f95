"""What the README tells a newcomer to type exists."""

import json
import re
import shlex

import pytest
import typer.main

from listing_vision.cli import app
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
LINES = re.findall(r"^(?:\.venv/bin/)?listing-vision (.+)$", CODE, re.MULTILINE)


def test_it_shows_the_verbs_of_the_work():
    assert {line.split()[0] for line in LINES} >= {"data", "train", "export", "evaluate", "serve", "classify", "triton"}


@pytest.mark.parametrize("line", LINES)
def test_each_command_line_parses(line):
    words = shlex.split(line.split("  #")[0])
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        # `serve BUNDLE` is short for a command of its own.
        command = command.commands[words.pop(0) if words[0] in command.commands else "run"]
    assert command.make_context(command.name, words, resilient_parsing=False).params


def test_each_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test", "serve"} <= named
    for target in named:
        if target.startswith("bench-"):
            continue
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"make bench-(\w+)", README):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_its_figures_are_those_of_the_committed_results():
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["metrics"]
        for name in ("grocery_accuracy", "serving", "training_speed", "manifest_scale")
    }
    accuracy, serving = results["grocery_accuracy"], results["serving"]
    for name in ("fine_top1", "coarse_top1", "brand_top1_branded", "brand_top1_unbranded", "listing3_fine_top1"):
        assert f"{100 * accuracy[name]:.1f} %" in README, name
    assert f"{accuracy['train_minutes']:.1f} minutes" in README
    assert f"{serving['photos_per_s_c32']:.1f} photos/s, {serving['ratio_to_ceiling_c32']:.2f} of" in README
    training, manifest = results["training_speed"], results["manifest_scale"]
    assert f"{training['photos_per_s']:.1f} photos/s, {training['ratio_to_timm_cpu']:.2f} of timm's" in README
    assert f"{manifest['seconds']:.1f} s, {manifest['rss_gib']:.1f} GiB" in README
    certificate = json.loads((ROOT / "benchmarks" / "results" / "certificate.json").read_text())
    brand = certificate["details"]["drawn"]["fields"]["brand"]
    assert (
        f"{100 * brand['test_coverage']:.1f} % of {brand['test_listings']:,} test listings, "
        f"{100 * brand['test_precision']:.1f} % right; with all labels known "
        f"{100 * brand['best_possible_coverage']:.1f} % could be"
    ) in README
    assert f"a promise broken in {100 * certificate['metrics']['violation_rate']:.1f} % of draws" in README
    assert f"{serving['p50_ms_c8']:.0f} ms, {serving['p99_ms_c8']:.0f} ms" in README


def test_every_linked_page_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
