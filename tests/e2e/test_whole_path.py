"""Train, export, Triton, gateway, client: real processes, real channels, real kills."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from listing_vision.classify import classify_with_bundle
from listing_vision_client import CallFailed, ListingVisionClient
from serving.triton.process import LocalTriton
from tests.conftest import ROOT
from tests.support.helpers import list_children
from tests.support.serving_process import is_alive
from tests.support.waiting import wait_until
from vision.manifest import Manifest
from vision.photo_files import read_photo

BUF = Path(sysconfig.get_path("scripts")) / "buf"


@pytest.fixture(scope="module")
def listings(synthetic_dataset):
    """Listing id to the bytes of its photos."""
    test = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test")
    photos: dict[str, list[bytes]] = {}
    for row, listing in enumerate(test.column("listing_id").to_pylist()):
        photos.setdefault(listing, []).append(read_photo(test.get_photo_url(row)))
    return photos


def test_listings_through_triton_are_answered_as_by_the_bundle_alone(served, bundle, listings):
    with ListingVisionClient(served.address) as client:
        for listing_id, photos in listings.items():
            over_grpc = client.classify(photos, listing_id=listing_id)
            alone = classify_with_bundle(bundle.folder, photos)
            assert over_grpc.listing_id == listing_id
            assert [s.category_id for s in over_grpc.category_path] == [s.category_id for s in alone.category_path]
            assert [s.action for s in over_grpc.category_path] == [s.action for s in alone.category_path]
            assert over_grpc.brand.brand_id == alone.brand.brand_id
            for got, wanted in zip(over_grpc.category_path, alone.category_path, strict=True):
                assert got.probability == pytest.approx(wanted.probability, abs=1e-4)


def buf_curl(served, method: str, request: dict) -> subprocess.CompletedProcess:
    """Calls with a client that is not Python and knows the service by reflection only."""
    url = f"http://{served.address}/listing.vision.v1.ListingVisionService/{method}"
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", "@-", url]
    return subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_a_client_that_is_not_python_is_answered(served, bundle, listings):
    listing_id, photos = next(iter(listings.items()))
    content = [{"content": base64.b64encode(photo).decode()} for photo in photos]
    done = buf_curl(served, "ClassifyListing", {"listingId": listing_id, "photos": content})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    alone = classify_with_bundle(bundle.folder, photos)
    assert [s["categoryId"] for s in answer["categoryPath"]] == [s.category_id for s in alone.category_path]
    assert len(answer["photos"]) == len(photos)


def test_it_reads_error_details_too(served):
    done = buf_curl(served, "ClassifyListing", {"photos": []})
    assert done.returncode != 0
    error = json.loads(done.stderr)
    assert error["code"] == "invalid_argument"
    value = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in error["details"]}
    info = error_details_pb2.ErrorInfo.FromString(value["google.rpc.ErrorInfo"])
    assert (info.reason, info.domain) == ("NO_PHOTOS", "listing.vision")
    bad = error_details_pb2.BadRequest.FromString(value["google.rpc.BadRequest"])
    assert [violation.field for violation in bad.field_violations] == ["photos"]


def test_a_killed_triton_is_started_again_without_a_restart_of_the_gateway(
    bundle, start_serving, triton_installation, listings, tmp_path
):
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    photos = next(iter(listings.values()))
    serving = health_pb2.HealthCheckResponse.SERVING
    with ListingVisionClient(served.address) as client:
        before = client.classify(photos)
        killed = served.triton_pid()
        model_pids = list_model_pids(killed)
        os.kill(model_pids[0], signal.SIGSTOP)  # as one that waits for ever for what the server held
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: "restarting Triton" in served.log, "Triton started again")
        wait_until(lambda: served.triton_pid() != killed, "Triton answers again")
        wait_until(lambda: served.check_health("listing.vision.v1.ListingVisionService") == serving, "health SERVING")
        after = client.classify(photos)
    assert after.category_path == before.category_path
    assert served.num_started_gateways == 1
    wait_until(lambda: not any(is_alive(pid) for pid in model_pids), "nothing of the killed Triton is left")
    assert served.stop() == 0


def wait_for_replacements(served, old: list[int], how_many: int | None, *, num_loads: int) -> list[int]:
    """Those that came for a model's processes, once some or all of these were killed and none is left."""
    known = set(list_model_pids(served.triton_pid()))
    for pid in old[:how_many]:
        os.kill(pid, signal.SIGKILL)
    # Not that it is begun: processes that are killed while they load are another load.
    wait_until(lambda: served.log.count("Triton has reloaded listing_vision") == num_loads, "reloaded")
    wait_until(lambda: not any(is_alive(pid) for pid in old), "nothing of the old model is left")

    def came() -> list[int]:
        return sorted(p for p in list_model_pids(served.triton_pid()) if p not in known and is_alive(p))

    # More where a load took too long and was asked for twice.
    wait_until(lambda: len(came()) == len(old), "as many processes as before")
    return came()


def wait_for_response(client: ListingVisionClient, photos: list[bytes]):
    """Return the response, once the gateway has seen that the model is back."""
    found = []

    def is_answered() -> bool:
        with contextlib.suppress(CallFailed):
            found.append(client.classify(photos))
        return bool(found)

    wait_until(is_answered, "answered")
    return found[0]


def get_category_ids(response) -> list[str]:
    """Whether they are prefilled depends on the release's health, which is checked a moment later."""
    return [category.category_id for category in response.category_path]


@pytest.mark.parametrize("how_many", [1, None])
def test_killed_model_processes_are_replaced(bundle, start_serving, triton_installation, listings, tmp_path, how_many):
    # Triton itself stays READY for ever with a dead stub, and never starts another.
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    photos = next(iter(listings.values()))
    with ListingVisionClient(served.address) as client:
        before = get_category_ids(client.classify(photos))
        triton_pid = served.triton_pid()
        first = list_model_pids(triton_pid)
        second = wait_for_replacements(served, first, how_many, num_loads=1)
        assert get_category_ids(wait_for_response(client, photos)) == before
        # What was healed once is healed again.
        wait_for_replacements(served, second, how_many, num_loads=2)
        assert get_category_ids(wait_for_response(client, photos)) == before
    assert served.triton_pid() == triton_pid
    assert Path(f"/proc/{triton_pid}").exists()
    assert served.stop() == 0


def test_triton_does_not_outlive_a_killed_gateway(bundle, start_serving, triton_installation, tmp_path):
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    pid = served.triton_pid()
    served.process.kill()
    served.process.wait()
    wait_until(lambda: not is_alive(pid), "Triton gone")


def list_model_pids(triton_pid: int) -> list[int]:
    """Those that have been started, whether they still run or not."""
    return list_children(triton_pid)


def test_calls_in_flight_at_sigterm_are_answered(bundle, start_serving, triton_installation, listings, tmp_path):
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    photos = next(iter(listings.values()))
    with ListingVisionClient(served.address) as client, ThreadPoolExecutor(8) as pool:
        client.classify(photos)
        calls = [pool.submit(client.classify, photos * 6, listing_id=f"call-{i}") for i in range(8)]
        wait_until(lambda: "call-" in served.log, "a call answered while others wait")
        served.process.send_signal(signal.SIGTERM)
        assert [len(call.result().photos) for call in calls] == [6 * len(photos)] * 8
    assert served.process.wait(60) == 0


def shared_memory(supervisor: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"listing_vision_{supervisor}_*"))


def model_repository(triton_pid: int) -> Path:
    words = Path(f"/proc/{triton_pid}/cmdline").read_text().split("\0")
    return Path(next(word.split("=", 1)[1] for word in words if word.startswith("--model-repository=")))


def test_sigterm_ends_everything_and_leaves_nothing(bundle, start_serving, triton_installation, listings, tmp_path):
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    pid = served.triton_pid()
    repository = model_repository(pid)
    assert repository.exists()
    assert shared_memory(served.process.pid)
    with ListingVisionClient(served.address) as client:
        assert client.classify(next(iter(listings.values()))).category_path
    assert served.stop() == 0
    assert not Path(f"/proc/{pid}").exists()
    assert not shared_memory(served.process.pid)
    assert not repository.parent.exists()
    assert "stopped" in served.log.splitlines()[-1]


def test_an_external_triton_that_is_away_does_not_keep_the_gateway_from_starting(
    bundle, start_serving, tmp_path, listings
):
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--triton", "127.0.0.1:1")
    assert served.check_health() == health_pb2.HealthCheckResponse.NOT_SERVING
    with ListingVisionClient(served.address) as client, pytest.raises(CallFailed) as caught:
        client.classify(next(iter(listings.values())))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
    assert served.stop() == 0


def test_an_external_triton_that_comes_up_later_is_found(
    bundle, start_serving, triton_installation, tmp_path, listings
):
    triton = LocalTriton(bundle, triton_installation)
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--triton", triton.address)
    assert served.check_health() == health_pb2.HealthCheckResponse.NOT_SERVING
    triton.start()
    try:
        wait_until(lambda: served.check_health() == health_pb2.HealthCheckResponse.SERVING, "health SERVING")
        with ListingVisionClient(served.address) as client:
            assert client.classify(next(iter(listings.values()))).category_path
        triton.restart()
        os.kill(triton.pid, signal.SIGSTOP)
        wait_until(lambda: served.check_health() == health_pb2.HealthCheckResponse.NOT_SERVING, "health NOT_SERVING")
        os.kill(triton.pid, signal.SIGCONT)
        wait_until(lambda: served.check_health() == health_pb2.HealthCheckResponse.SERVING, "health SERVING again")
        assert served.stop() == 0
        assert triton.is_running()  # it is not the gateway's to stop
    finally:
        triton.stop()


def test_a_machine_without_triton_answers_in_process_and_says_so(
    bundle, start_serving, tmp_path, monkeypatch, listings
):
    monkeypatch.setenv("LISTING_VISION_TRITON_HOME", str(tmp_path / "nowhere"))
    served = start_serving(bundle.folder, tmp_path / "serve.log")
    with ListingVisionClient(served.address) as client:
        assert client.classify(next(iter(listings.values()))).category_path
    assert "no Triton: the gateway processes run the model themselves" in served.log
    assert "listing-vision triton install" in served.log
    assert served.stop() == 0


def test_an_altered_bundle_is_not_served(bundle, start_serving, tmp_path):
    copied = shutil.copytree(bundle.folder, tmp_path / "bundle")
    (copied / "taxonomy.json").write_text((copied / "taxonomy.json").read_text() + " ")
    with pytest.raises(AssertionError, match=r"taxonomy\.json was altered"):
        start_serving(copied, tmp_path / "serve.log")
