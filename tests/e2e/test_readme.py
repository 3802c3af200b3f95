"""What the README tells a newcomer to type exists."""

import json
import re
import shlex

import pytest
import typer.main

from benchmarks.gpu.table import table
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
        assert (ROOT / "benchmarks" / f"{name}.py").is_file() or (ROOT / "benchmarks" / name).is_dir()


def test_its_figures_are_those_of_the_committed_results():
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["metrics"]
        for name in (
            "grocery_accuracy",
            "serving",
            "training_speed",
            "manifest_scale",
            "overload",
            "faults",
            "backfill",
            "backfill_scale",
            "backfill_kills",
            "precision",
            "rollout",
            "shadow",
        )
    }
    accuracy, serving = results["grocery_accuracy"], results["serving"]
    for name in ("fine_top1", "coarse_top1", "brand_top1_branded", "brand_top1_unbranded", "listing3_fine_top1"):
        assert f"{100 * accuracy[name]:.1f} %" in README, name
    assert f"{accuracy['train_minutes']:.1f} minutes" in README
    assert f"{serving['photos_per_s_c32']:.1f} photos/s, {serving['ratio_to_ceiling_c32']:.2f} of" in README
    training, manifest = results["training_speed"], results["manifest_scale"]
    assert f"{training['photos_per_s']:.1f} photos/s, {training['ratio_to_timm_cpu']:.2f} of timm's" in README
    assert f"{manifest['seconds']:.1f} s, {manifest['rss_gib']:.1f} GiB" in README
    overload, faults = results["overload"], results["faults"]
    assert (
        f"{overload['goodput_ratio_3x']:.2f} of the peak answered, p99 {overload['accepted_p99_ms_3x'] / 1000:.1f} s"
        in README
    )
    killed = [faults[f"kill_{what}_recovery_s"] for what in ("triton", "stub", "worker")]
    assert f"after {killed[0]:.1f} s, {killed[1]:.1f} s, {killed[2]:.2f} s; no wrong answer, no hung call" in README
    frozen = [faults[f"freeze_{what}_recovery_s"] for what in ("triton", "worker")]
    assert f"all is well after {frozen[0]:.1f} s, {frozen[1]:.1f} s |" in README
    assert faults["wrong_or_hung_calls"] == 0
    rollout, shadow = results["rollout"], results["shadow"]
    assert rollout["failed_calls"] == shadow["failed_calls"] == 0
    assert f"no failed call of {rollout['calls']:,.0f}, p99 {rollout['p99_ratio']:.2f} times" in README
    quarter, half, full = (shadow[f"shadow_seen_{name}"] for name in ("quarter", "half", "c32"))
    assert f"sees {quarter:.0%}, {half:.0%} and {full:.1%}".replace("%", " %") in README
    p99 = [shadow[f"shadow_p99_ratio_{name}"] for name in ("quarter", "half", "c32")]
    assert "p99 {:.2f}, {:.2f} and {:.2f} times".format(*p99) in README
    backfill, scale, kills = (results[name] for name in ("backfill", "backfill_scale", "backfill_kills"))
    assert f"{backfill['photos_per_s']:.1f} photos/s, {backfill['ratio_to_ceiling']:.2f} of the same model" in README
    assert f"called in one process, {backfill['ratio_to_ray_data']:.1f} times a plain Ray Data script" in README
    assert f"{scale['rss_mb_1000']:.0f} MB, {scale['rss_mb_100000']:.0f} MB" in README
    assert f"first shard after {scale['first_shard_s']:.1f} s" in README
    assert f"every listing once; {kills['shards_redone_per_kill']:.2f} shards done again for each" in README
    assert kills["missing_or_doubled"] == 0
    precision = results["precision"]
    gained = -100 * precision["int8_top1_loss"]
    assert f"{precision['int8_speedup_cpu']:.2f} times the photos/s, {gained:+.2f} points on test" in README
    faster = [precision[f"student{kind}_speedup"] for kind in ("", "_int8")]
    lost = [100 * precision[f"student{kind}_top1_loss"] for kind in ("", "_int8")]
    assert f"{faster[0]:.1f} and {faster[1]:.1f} times its photos/s, {lost[0]:.1f} and {lost[1]:.1f} points" in README
    gpu = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())
    assert table(gpu) in README
    assert gpu["machine"]["gpu"].removeprefix("NVIDIA ") in README
    from_files, share = (gpu["metrics"][f"backfill_on_cores_{name}"] for name in ("photos_per_s", "share_of_ceiling"))
    assert f"a backfill from files {from_files:.0f}, {share:.2f} of that" in README
    certificate = json.loads((ROOT / "benchmarks" / "results" / "certificate.json").read_text())
    brand = certificate["details"]["drawn"]["fields"]["brand"]
    assert (
        f"{100 * brand['test_coverage']:.1f} % of {brand['test_listings']:,} test listings, "
        f"{100 * brand['test_precision']:.1f} % right; with all labels known "
        f"{100 * brand['best_possible_coverage']:.1f} % could be"
    ) in README
    assert f"a promise broken in {100 * certificate['metrics']['violation_rate']:.1f} % of draws" in README
    assert f"{serving['p50_ms_c8']:.0f} ms, {serving['p99_ms_c8']:.0f} ms" in README


def test_what_is_said_of_decoding_on_a_card_was_measured():
    result = json.loads((ROOT / "benchmarks" / "results" / "device_agreement_cpu.json").read_text())
    coarse = result["metrics"]["category_depth_2_top1_from_pixels"]
    assert f"a second seed came to {100 * coarse:.1f} % coarse" in README
    measured, page = result["metrics"], (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert f"{100 * measured['changed_leaf_share']:.2f} % of Grocery Store's" in page
    assert measured["changed_fills_share"] == 0
    broken = {100 * measured[f"violation_rate_certified_from_{how}"] for how in ("pixels", "files")}
    assert {f"in {rate:.1f} % of {result['details']['draws']} draws" in page for rate in broken} == {True}


def test_every_linked_page_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
