"""Another model for a running service: nobody's call fails, and what is broken never answers."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from listing_vision_client import ListingVisionClient
from serving.rollout.traffic_split import CANARY, SHADOW, TrafficShare
from serving.triton.config import RepositoryOptions
from tests.conftest import ROOT
from tests.support.helpers import list_children
from tests.support.outcomes import read_table
from tests.support.serving_process import PHOTO, Callers
from tests.support.waiting import wait_until


def model(served, *words: object) -> tuple[int, str]:
    port = served.address.rpartition(":")[2]
    command = [sys.executable, "-m", "listing_vision", "model", *map(str, words), "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    # Of a command that takes long, progress is among the errors.
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def wait_for_release(served, listing_id: str = "") -> str:
    with ListingVisionClient(served.address) as client:
        return client.classify([PHOTO], listing_id=listing_id).model.version


def read_release_states(served) -> dict[str, str]:
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
        assert read_release_states(served) == {bundle.release: "stable"}
        code, said = model(served, "load", other_bundle.folder)
        assert (code, other_bundle.release in said) == (0, True), said
        assert wait_for_release(served) == old
        code, said = model(served, "load", other_bundle.folder)
        assert (code, "is loaded already" in said) == (1, True)
        assert model(served, "promote", other_bundle.release)[0] == 0
        assert wait_for_release(served) == new
        assert read_release_states(served) == {bundle.release: "previous", other_bundle.release: "stable"}
        code, said = model(served, "unload", other_bundle.release)
        assert (code, "promote another one first" in said) == (1, True)
        code, said = model(served, "rollback")
        assert (code, said.strip()) == (0, f"{bundle.release} is the stable release")
        assert wait_for_release(served) == old
        assert model(served, "unload", other_bundle.release)[0] == 0
        assert read_release_states(served) == {bundle.release: "stable"}
        asked = callers.num_answered
        wait_until(lambda: callers.num_answered >= asked + 5, "answers after it all")
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
    assert (code, f"loaded: {bundle.release}" in said) == (1, True)
    code, said = model(served, "rollback")
    assert (code, "no release to go back to" in said) == (1, True)
    assert wait_for_release(served) == bundle.info.model_version
    assert read_release_states(served) == {bundle.release: "stable"}
    assert served.stop() == 0
    code, said = model(served, "status")
    assert (code, "no supervisor responds" in said) == (1, True)


def test_what_was_promoted_answers_after_triton_has_died(
    bundle, other_bundle, start_serving, triton_installation, tmp_path
):
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    assert model(served, "load", other_bundle.folder)[0] == 0
    assert model(served, "promote", other_bundle.release)[0] == 0
    killed = served.triton_pid()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: served.triton_pid() != killed, "Triton answers again")
    serving = health_pb2.HealthCheckResponse.SERVING
    wait_until(lambda: served.check_health() == serving, "health SERVING")
    assert wait_for_release(served) == other_bundle.info.model_version
    assert model(served, "rollback")[0] == 0
    assert wait_for_release(served) == bundle.info.model_version
    assert len(list_children(served.triton_pid())) >= 2  # the processes of two models
    assert served.stop() == 0


def test_a_stopped_gateway_process_does_not_keep_routes_from_changing(bundle, other_bundle, start_serving, tmp_path):
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--workers", "2")
    victim = min(served.list_gateways())
    os.kill(victim, signal.SIGSTOP)
    code, said = model(served, "load", other_bundle.folder)
    assert code == 0, said
    assert model(served, "promote", other_bundle.release)[0] == 0
    wait_until(lambda: served.num_started_gateways == 3, "another process in its place")
    assert {wait_for_release(served) for _ in range(6)} == {other_bundle.info.model_version}
    assert served.stop() == 0


def test_a_release_whose_bundle_has_gone_is_left_out_and_told_of(bundle, other_bundle, start_serving, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(other_bundle.folder, copied)
    options = ("--in-process", "--workers", "2", "--canary", copied, "--canary-share", "1")
    served = start_serving(bundle.folder, tmp_path / "serve.log", *map(str, options))
    assert wait_for_release(served, "a") == other_bundle.info.model_version
    shutil.rmtree(copied)
    os.kill(min(served.list_gateways()), signal.SIGKILL)
    wait_until(lambda: served.num_started_gateways == 3, "another process")
    assert f"release {other_bundle.release} is skipped: {copied} is not a model bundle" in served.log
    # Of two processes one has it no longer: it answers nobody.
    wait_until(lambda: read_release_states(served)[other_bundle.release] == "loaded", "the canary is removed")
    assert {wait_for_release(served, "a") for _ in range(6)} == {bundle.info.model_version}
    code, said = model(served, "promote", other_bundle.release)
    assert (code, "is not a model bundle" in said) == (1, True), said
    assert {wait_for_release(served, "a") for _ in range(6)} == {bundle.info.model_version}
    assert model(served, "unload", other_bundle.release)[0] == 0
    assert served.stop() == 0


def test_a_loaded_release_outlives_the_folder_that_was_given(bundle, other_bundle, start_serving, tmp_path):
    given = shutil.copytree(other_bundle.folder, tmp_path / "given")
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--workers", "2")
    assert model(served, "load", given)[0] == 0
    assert model(served, "promote", other_bundle.release)[0] == 0
    shutil.rmtree(given)
    os.kill(min(served.list_gateways()), signal.SIGKILL)
    wait_until(lambda: served.num_started_gateways == 3, "another process")
    assert {wait_for_release(served) for _ in range(6)} == {other_bundle.info.model_version}
    assert served.stop() == 0


def test_what_was_promoted_answers_after_the_service_and_its_triton_were_killed(
    bundle, other_bundle, start_serving, triton_installation, tmp_path
):
    options = ("--state-folder", str(tmp_path / "state"))
    served = start_serving(bundle.folder, tmp_path / "first.log", *options)
    assert model(served, "load", other_bundle.folder)[0] == 0
    assert model(served, "promote", other_bundle.release)[0] == 0
    served.process.kill()
    served.process.wait()
    again = start_serving(bundle.folder, tmp_path / "second.log", *options)
    assert wait_for_release(again) == other_bundle.info.model_version
    assert read_release_states(again) == {bundle.release: "previous", other_bundle.release: "stable"}
    assert model(again, "rollback")[0] == 0
    assert wait_for_release(again) == bundle.info.model_version
    assert again.stop() == 0


def find_ids_by_share(bundle, share: float, purpose: str = CANARY) -> tuple[str, str]:
    """A listing's id that is in a release's share, and one that is not."""
    taken = TrafficShare(label=bundle.release, share=share)
    ids = [f"m{number}" for number in range(1000)]
    return next(i for i in ids if taken.contains(i, purpose)), next(i for i in ids if not taken.contains(i, purpose))


@pytest.mark.parametrize("options", [("--in-process", "--workers", "2"), ("--workers", "2")], ids=["alone", "triton"])
def test_a_canary_answers_its_share_and_what_makes_no_sense_changes_nothing(
    bundle, other_bundle, start_serving, triton_installation, tmp_path, options
):
    old, new = bundle.info.model_version, other_bundle.info.model_version
    served = start_serving(bundle.folder, tmp_path / "serve.log", *options)
    canary = other_bundle.release
    assert model(served, "load", other_bundle.folder)[0] == 0
    mine, others = find_ids_by_share(other_bundle, 0.3)
    for words, said in (
        (("canary", canary, "--share", "1.2"), "canary share 1.2 is outside (0, 1]"),
        (("canary", "unknown"), f"unknown is not loaded; loaded: {bundle.release}, {canary}"),
        (("canary", bundle.release), f"{bundle.release} cannot be stable and canary at once"),
        (("shadow", canary), "start with --outcomes"),
    ):
        code, told = model(served, *words)
        assert (code, said in told) == (1, True), told
        assert read_release_states(served) == {bundle.release: "stable", canary: "loaded"}
    assert model(served, "canary")[0] == 2  # neither a release nor --off
    with Callers(served.address) as callers:
        assert model(served, "canary", canary, "--share", "0.3")[0] == 0
        assert read_release_states(served) == {bundle.release: "stable", canary: "canary 0.3"}
        assert [wait_for_release(served, mine) for _ in range(6)] == [new] * 6  # whichever process is asked
        assert [wait_for_release(served, others) for _ in range(6)] == [old] * 6
        code, told = model(served, "unload", canary)
        assert (code, "is the canary" in told) == (1, True)
        # A process that comes later knows it too.
        victim = min(served.list_gateways())
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: served.num_started_gateways == 3, "another process")
        assert [wait_for_release(served, mine) for _ in range(6)] == [new] * 6
        assert model(served, "canary", "--off")[0] == 0
        assert [wait_for_release(served, mine) for _ in range(6)] == [old] * 6
        assert model(served, "promote", canary)[0] == 0
        assert wait_for_release(served, others) == new
    assert [failure for failure in callers.failures if "UNAVAILABLE" not in failure] == []
    assert served.stop() == 0


def list_canary_processes(served) -> list[int]:
    """Pids of the processes that compute the model that was loaded second."""
    found = []
    for pid in list_children(served.triton_pid()):
        with contextlib.suppress(FileNotFoundError):  # it has ended
            if b"/listing_vision_2/" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_frozen_canary_is_removed_and_no_call_fails(
    bundle, other_bundle, start_serving, triton_installation, tmp_path
):
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--status-port", "0")
    assert model(served, "load", other_bundle.folder)[0] == 0
    canary = other_bundle.release
    assert model(served, "canary", canary, "--share", "1")[0] == 0
    assert wait_for_release(served, "a") == other_bundle.info.model_version
    wanted = RepositoryOptions(backend="python").num_instances
    wait_until(lambda: len(list_canary_processes(served)) == wanted, "an instance's process each, and no other")
    stopped = set()
    versions = []
    try:
        with ListingVisionClient(served.address) as client:
            for number in range(1000):
                # Triton kills a frozen process, and new ones may start before the canary is removed.
                for pid in set(list_canary_processes(served)) - stopped:
                    os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)
                versions.append(client.classify([PHOTO], listing_id=str(number), timeout_s=5).model.version)
                if "is removed" in served.log:
                    break
        wait_until(lambda: read_release_states(served)[canary] == "loaded", "the canary is removed")
        assert bundle.info.model_version in versions
        assert wait_for_release(served, "b") == bundle.info.model_version
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert "was removed as a canary: gateway process" in model(served, "status")[1]
    found = served.read_metrics()
    assert found["listing_vision_canaries_removed_total",] == 1
    executed = {label for name, *labels in found if name.startswith("nv_inference_exec") for label in labels}
    assert {"listing_vision", "listing_vision_2"} <= executed  # Triton's own metrics stand beside ours
    assert model(served, "canary", canary, "--share", "1")[0] == 0  # it is healthy again
    assert wait_for_release(served, "a") == other_bundle.info.model_version
    assert served.stop() == 0


def test_a_shadow_is_recorded_beside_what_was_answered(
    bundle, other_bundle, start_serving, triton_installation, tmp_path
):
    folder = tmp_path / "outcomes"
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--outcomes", str(folder))
    assert model(served, "load", other_bundle.folder)[0] == 0
    assert model(served, "shadow", other_bundle.release, "--share", "0.5")[0] == 0
    assert read_release_states(served)[other_bundle.release] == "shadow 0.5"
    mine, others = find_ids_by_share(other_bundle, 0.5, SHADOW)
    assert {wait_for_release(served, mine), wait_for_release(served, others)} == {bundle.info.model_version}
    wait_until(lambda: (folder / "shadows").exists(), "it is written out")
    assert model(served, "shadow", "--off")[0] == 0
    assert read_release_states(served)[other_bundle.release] == "loaded"
    assert served.stop() == 0
    (row,) = read_table(folder, "shadows")
    assert (row["listing_id"], row["model_version"]) == (mine, other_bundle.info.model_version)
    assert len(read_table(folder, "suggestions")) == 2


def test_a_canary_and_a_shadow_may_be_given_at_the_start(
    bundle, other_bundle, start_serving, triton_installation, tmp_path
):
    options = ("--canary", str(other_bundle.folder), "--canary-share", "0.3")
    served = start_serving(bundle.folder, tmp_path / "serve.log", *options)
    mine, others = find_ids_by_share(other_bundle, 0.3)
    old, new = bundle.info.model_version, other_bundle.info.model_version
    assert read_release_states(served) == {bundle.release: "stable", other_bundle.release: "canary 0.3"}
    assert (wait_for_release(served, mine), wait_for_release(served, others)) == (new, old)
    # Gateways before somebody else's Triton, which serves the canary until it does no longer.
    triton = re.search(r"Triton \(pid \d+\) answers at (\S+)", served.log).group(1)
    second = start_serving(bundle.folder, tmp_path / "second.log", "--triton", triton, *options)
    assert wait_for_release(second, mine) == new
    shadow = ("--shadow", str(other_bundle.folder), "--outcomes", str(tmp_path / "outcomes"))
    third = start_serving(bundle.folder, tmp_path / "third.log", "--triton", triton, *shadow)
    assert wait_for_release(third, mine) == old
    assert read_release_states(third)[other_bundle.release] == "shadow 1"
    assert model(served, "canary", "--off")[0] == 0
    assert model(served, "unload", other_bundle.release)[0] == 0
    for _ in range(1000):
        assert wait_for_release(second, mine) == old
        if "is removed" in second.log:
            break
    assert read_release_states(second)[other_bundle.release] == "loaded"
    assert [each.stop() for each in (third, second, served)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--canary", "{}", "--canary-share", "2"), 1, "canary share 2 is outside (0, 1]"),
        (("--canary", "nowhere"), 1, "nowhere"),
        (("--shadow", "{}"), 2, "needs --outcomes"),
    ],
)
def test_a_canary_that_makes_no_sense_stops_the_start(bundle, other_bundle, options, code, said):
    words = [word.format(other_bundle.folder) for word in options]
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--in-process", "--port", "0"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
