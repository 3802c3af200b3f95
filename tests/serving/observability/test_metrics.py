"""Metrics of several processes, added up by another one."""

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from serving.observability.metrics import MetricsFolder
from tests.conftest import ROOT

GATEWAY = """
from serving.observability.metrics import CALLS, PHOTOS_IN_FLIGHT
import os
CALLS.labels("OK", "1.2").inc(3)
PHOTOS_IN_FLIGHT.set(5)
print(os.getpid())
"""


def read_metrics(folder):
    families = text_string_to_metric_families(folder.render().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_counters_outlive_their_process_and_gauges_do_not():
    folder = MetricsFolder()
    try:
        pids = []
        for _ in range(2):
            command = [sys.executable, "-c", GATEWAY]
            done = subprocess.run(
                command, env=folder.build_environment(), cwd=ROOT, capture_output=True, text=True, check=True
            )
            pids.append(int(done.stdout))
        found = read_metrics(folder)
        assert found["listing_vision_gateway_calls_total"] == 6
        assert found["listing_vision_gateway_photos_in_flight"] == 10
        folder.mark_process_dead(pids[0])
        found = read_metrics(folder)
        assert found["listing_vision_gateway_calls_total"] == 6
        assert found["listing_vision_gateway_photos_in_flight"] == 5
    finally:
        folder.remove()
    assert not folder.path.exists()


SERIES = """
from serving.observability.metrics import create_series
create_series("1.2")
"""


def test_series_that_alerts_divide_by_exist_before_the_first_call():
    folder = MetricsFolder()
    try:
        environment = folder.build_environment()
        subprocess.run([sys.executable, "-c", SERIES], env=environment, cwd=ROOT, check=True)
        families = text_string_to_metric_families(folder.render().decode())
        samples = [sample for family in families for sample in family.samples if sample.labels]
    finally:
        folder.remove()
    found = {(sample.name, sample.labels.get("result")): sample for sample in samples}
    for result in ("OK", "TOO_BUSY", "MODEL_UNAVAILABLE", "INTERNAL"):
        assert found["listing_vision_gateway_calls_total", result].value == 0
        assert found["listing_vision_gateway_calls_total", result].labels["model_release"] == "1.2"
    assert found["listing_vision_gateway_call_seconds_count", "OK"].value == 0
