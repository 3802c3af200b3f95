"""One client, three real gateways: calls are shared evenly, and none fails when a gateway is killed."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from listing_vision_client import ListingVisionClient
from tests.support.helpers import create_scene, encode_image
from tests.support.serving_process import list_process_tree

NUM_GATEWAYS, NUM_CALLS = 3, 3000
PHOTO = encode_image(create_scene(64, 48))


@pytest.fixture(scope="module")
def gateways(bundle, start_serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateways")
    # Each process decodes itself, on threads: three of them start on two cores.
    options = ("--in-process", "--no-isolate", "--status-port", "0")
    return [start_serving(bundle.folder, folder / f"{n}.log", *options) for n in range(NUM_GATEWAYS)]


def count_calls(gateway) -> int:
    """The listings that a gateway has classified."""
    metrics = gateway.read_metrics()
    return int(sum(v for (name, *labels), v in metrics.items() if name.endswith("calls_total") and "OK" in labels))


def test_calls_are_shared_evenly_and_a_killed_gateway_fails_none(gateways):
    with (
        ListingVisionClient([gateway.address for gateway in gateways]) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def classify(number: int) -> bool:
            return bool(client.classify([PHOTO], listing_id=str(number), timeout_s=30).category_path)

        assert all(pool.map(classify, range(NUM_CALLS)))
        counts = [count_calls(gateway) for gateway in gateways]
        assert sum(counts) == NUM_CALLS
        assert max(counts) <= 1.1 * min(counts), counts
        print(f"calls of {NUM_CALLS} by gateway: {counts}")

        num_done, half_done = [], threading.Event()

        def classify_and_count(number: int) -> bool:
            num_done.append(number)
            if len(num_done) == 100:
                half_done.set()
            return classify(number)

        killed = gateways[0]
        results = pool.map(classify_and_count, range(600))
        half_done.wait(60)
        for pid in list_process_tree(killed.process.pid):
            os.kill(pid, signal.SIGKILL)
        killed.process.wait()
        assert all(results)
    assert sum(map(count_calls, gateways[1:])) - sum(counts[1:]) >= 500 * 2 / 3
