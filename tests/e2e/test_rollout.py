"""Another model for a running service: nobody's call fails, and what is broken never answers."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from grpc_health.v1 import health_pb2

from serving.client import ListingVisionClient
from tests.conftest import ROOT
from tests.e2e.test_whole_path import health
from tests.helpers import train_run
from tests.serving.test_supervisor import PHOTO, Callers, children, until


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory, drawn, small_recipe):
    """Of other weights."""
    from training.export import export_bundle

    run = train_run(tmp_path_factory.mktemp("other"), drawn, replace(small_recipe, seed=7))
    return export_bundle(run, tmp_path_factory.mktemp("bundles") / "other", model_name="other")


def model(served, *words: object) -> tuple[int, str]:
    port = served.address.rpartition(":")[2]
    command = [sys.executable, "-m", "listing_vision", "model", *map(str, words), "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


def label(bundle) -> str:
    return f"{bundle.info.model_version}.{bundle.calibration.version[:6]}"


def answering(served) -> str:
    with ListingVisionClient(served.address) as client:
        return client.classify([PHOTO]).model.version


def loaded(served) -> dict[str, str]:
    """State by release."""
    code, said = model(served, "status")
    assert code == 0, said
    return {line.split()[0]: line[25:41].strip() for line in said.splitlines()}


@pytest.mark.parametrize("options", [("--in-process", "--workers", "2"), ("--workers", "2")], ids=["alone", "triton"])
def test_models_are_switched_without_a_failed_call(
    bundle, other_bundle, start_serving, triton_installation, tmp_path, options
):
    old, new = bundle.info.model_version, other_bundle.info.model_version
    assert old != new
    served = start_serving(bundle.folder, tmp_path / "serve.log", *options)
    with Callers(served.address) as callers:
        assert loaded(served) == {label(bundle): "answers"}
        code, said = model(served, "load", other_bundle.folder)
        assert (code, label(other_bundle) in said) == (0, True), said
        assert answering(served) == old
        code, said = model(served, "load", other_bundle.folder)
        assert (code, "is loaded already" in said) == (1, True)
        assert model(served, "promote", label(other_bundle))[0] == 0
        assert answering(served) == new
        assert loaded(served) == {label(bundle): "answered before", label(other_bundle): "answers"}
        code, said = model(served, "unload", label(other_bundle))
        assert (code, "promote another one first" in said) == (1, True)
        code, said = model(served, "rollback")
        assert (code, said.strip()) == (0, f"{label(bundle)} answers")
        assert answering(served) == old
        assert model(served, "unload", label(other_bundle))[0] == 0
        assert loaded(served) == {label(bundle): "answers"}
        asked = callers.num_answered
        until(lambda: callers.num_answered >= asked + 5, "answers after it all")
    assert callers.failures == []
    assert "has died" not in served.log
    assert served.stop() == 0


def test_a_broken_bundle_is_refused_and_the_old_one_goes_on(bundle, other_bundle, start_serving, tmp_path):
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process")
    broken = tmp_path / "broken"
    shutil.copytree(other_bundle.folder, broken)
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:-100])
    code, said = model(served, "load", broken)
    assert (code, "model.onnx" in said) == (1, True), said
    code, said = model(served, "promote", "unknown")
    assert (code, f"loaded: {label(bundle)}" in said) == (1, True)
    code, said = model(served, "rollback")
    assert (code, "no release to go back to" in said) == (1, True)
    assert answering(served) == bundle.info.model_version
    assert loaded(served) == {label(bundle): "answers"}
    assert served.stop() == 0
    code, said = model(served, "status")
    assert (code, "no supervisor answers" in said) == (1, True)


def test_what_was_promoted_answers_after_triton_has_died(
    bundle, other_bundle, start_serving, triton_installation, tmp_path
):
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    assert model(served, "load", other_bundle.folder)[0] == 0
    assert model(served, "promote", label(other_bundle))[0] == 0
    killed = served.triton_pid()
    os.kill(killed, signal.SIGKILL)
    until(lambda: served.triton_pid() != killed, "Triton answers again")
    serving = health_pb2.HealthCheckResponse.SERVING
    until(lambda: health(served.address) == serving, "health SERVING")
    assert answering(served) == other_bundle.info.model_version
    assert model(served, "rollback")[0] == 0
    assert answering(served) == bundle.info.model_version
    assert len(children(served.triton_pid())) >= 2  # the processes of two models
    assert served.stop() == 0
