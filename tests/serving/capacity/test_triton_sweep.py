"""Sweeps of settings on machines that are functions, and one on a real Triton."""

import json
from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as mc
from typer.testing import CliRunner

from listing_vision.cli import app
from serving.capacity import triton_sweep
from serving.capacity.triton_sweep import Budget, Measurement
from serving.triton.config import RepositoryOptions, build_model_config, read_tuning
from vision.errors import ListingVisionError

BUDGET = Budget(p99_ms=100, callers=2, seconds=1)


def run_tuning(rate):
    """Tune a machine whose photos/s and p99 follow from instances, batch and delay."""

    def measure(options):
        photos_per_s, p99_ms = rate(options.instances, options.preferred_batch_size, options.max_queue_delay_us)
        return Measurement(options=options, photos_per_s=photos_per_s, p50_ms=p99_ms / 2, p99_ms=p99_ms)

    reported = []
    best, measured = triton_sweep.tune(BUDGET, measure, on_measurement=reported.append)
    assert reported == measured
    assert len({m.options for m in measured}) == len(measured)  # nothing is measured twice
    return best.options


def test_the_fastest_that_keeps_the_budget_is_taken():
    best = run_tuning(lambda instances, batch, delay: (10 * batch, 30 * batch))
    assert best.preferred_batch_size == 2  # 4 would be faster, in 120 ms


@pytest.mark.parametrize("instances", [1, 2, 3, 4])
def test_instances_between_one_and_two_a_core_are_tried(instances, monkeypatch):
    monkeypatch.setattr(triton_sweep, "count_usable_cores", lambda: 2)
    best = run_tuning(lambda tried, batch, delay: (100 - 10 * abs(tried - instances), 50))
    assert best.instances == instances


def test_chance_changes_nothing():
    best = run_tuning(lambda instances, batch, delay: (100 + batch / 10, 50))
    assert best.preferred_batch_size == 1


def test_delays_are_tried_only_where_a_batch_can_wait():
    best = run_tuning(lambda instances, batch, delay: (batch * (1 + (delay or 0)), 50))
    assert (best.preferred_batch_size, best.max_queue_delay_us) == (8, 4000)


def test_a_budget_that_nothing_keeps_is_refused_with_the_fastest():
    with pytest.raises(
        ListingVisionError, match=r"p99 within 100 ms at 2 callers; the fastest needs 110 ms: allow more"
    ):
        run_tuning(lambda instances, batch, delay: (10, 100 + 10 * batch))


def test_what_is_written_is_read_again(bundle, tmp_path):
    options = RepositoryOptions(backend="python", instances=2, preferred_batch_size=4, max_queue_delay_us=1000)
    best = Measurement(options=options, photos_per_s=10, p50_ms=5, p99_ms=9)
    triton_sweep.write_tuning(tmp_path / "tuning.json", best, [best], BUDGET)
    assert read_tuning(tmp_path / "tuning.json") == options
    config = build_model_config(bundle, options)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert config.instance_group[0].count == 2
    assert config.parameters["preferred_batch_size"].string_value == "4"


@pytest.mark.parametrize("text", ["", "{}", '{"best": {"backend": "python", "colour": "red"}}'])
def test_another_file_is_no_tuning(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ListingVisionError, match=r"other\.json is not what .*tune triton. writes"):
        read_tuning(tmp_path / "other.json")


def test_no_file_is_named(tmp_path):
    with pytest.raises(ListingVisionError, match=r"gone\.json cannot be read: No such file"):
        read_tuning(tmp_path / "gone.json")


def test_a_real_triton_is_tuned_and_served_with_what_was_found(
    bundle, triton_installation, start_serving, tmp_path, monkeypatch
):
    # Two settings of the twelve: that each is measured as the others are is what the rest of this file shows.
    monkeypatch.setattr(triton_sweep, "VARIATIONS", [lambda best: [replace(best, preferred_batch_size=2)]])
    monkeypatch.setattr(triton_sweep, "PHOTO_PX", (64, 64))
    monkeypatch.setattr(triton_sweep, "WARM_UP_S", 0.1)
    output = tmp_path / "models"
    arguments = ["tune", "triton", str(bundle.folder), "--output", str(output), "--p99-ms", "60000", "--callers", "2"]
    done = CliRunner().invoke(app, [*arguments, "--seconds", "1"])
    assert done.exit_code == 0, done.output
    assert "best:" in done.output
    config = text_format.Parse((output / "listing_vision" / "config.pbtxt").read_text(), mc.ModelConfig())
    found = json.loads((output / "tuning.json").read_text())
    assert len(found["measured"]) == 2
    assert list(config.dynamic_batching.preferred_batch_size) == [found["best"]["preferred_batch_size"]]
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--tuning", str(output / "tuning.json"))
    assert served.stop() == 0
    again = CliRunner().invoke(app, arguments)
    assert "exists" in str(again.exception)
