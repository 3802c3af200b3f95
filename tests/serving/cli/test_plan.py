"""`plan measure` and `plan capacity` from a photo to a number of gateways."""

import json

from typer.testing import CliRunner

from serving.capacity import DEFAULT_GATEWAY_MS
from serving.capacity.profile import Profile
from serving.cli.plan import plan_app
from tests.conftest import ROOT
from tests.support.helpers import create_scene, encode_image
from vision.runtime.cpus import count_usable_cores


def run(*words: object):
    return CliRunner().invoke(plan_app, [str(word) for word in words])


def test_costs_are_measured_and_a_plan_is_made_of_them(bundle, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encode_image(create_scene(640, 480)))
    path = tmp_path / "profile.json"
    done = run("measure", bundle.folder, "--photos", tmp_path / "photos", "--output", path)
    assert done.exit_code == 0, done.output
    profile = Profile.load(path)
    assert profile.decode_ms > 0
    assert profile.model_ms[1] > 0
    assert profile.gateway_ms == DEFAULT_GATEWAY_MS
    cores = count_usable_cores()
    least_ms = profile.decode_ms + profile.gateway_ms
    assert f"the {cores} usable cores limit this machine to {1000 * cores / least_ms:.0f} photos/s" in done.output
    assert f"to {1000 * cores / (least_ms + profile.model_ms[1]):.0f} photos/s with the model on them" in done.output
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decode_ms": 5.0, "model_ms": {"1": 5.0}}))
    done = run("capacity", "--profile", path, "--listings-per-s", 20, "--p99-ms", 200)
    assert done.exit_code == 0, done.output
    assert "gateways   1 of 8 cores" in done.output
    path.write_text("{}")
    done = run("capacity", "--profile", path, "--listings-per-s", 20, "--p99-ms", 200)
    assert (done.exit_code, "is no profile" in str(done.exception)) == (1, True)


def test_the_gateways_default_cost_is_among_those_that_the_benchmark_measured():
    details = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())["details"]
    of_gateway = ("python -m listing_vision", "python -m serving.supervisor.gateway_worker")
    rounds = [done["cpu_ms_per_photo"] for done in details["by_round"]["gateway c32"]]
    measured_ms = [sum(done[process] for process in of_gateway) for done in rounds]
    assert min(measured_ms) <= DEFAULT_GATEWAY_MS <= max(measured_ms)
