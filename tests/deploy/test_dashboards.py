"""The dashboard on a service that nobody has called yet, by a real Prometheus."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request

import pytest
import yaml

from serving.processes.sockets import find_free_ports
from tests.conftest import ROOT
from tests.support.waiting import wait_until

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "listing-vision.json").read_text())
ONLY_WITH_A_GPU = {"avg by (gpu_uuid) (nv_gpu_utilization)"}


@pytest.fixture
def prometheus(bundle, start_serving, triton_installation, tmp_path):
    """URL of a Prometheus with our rules that scrapes a fresh service every second."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus: apt-get install prometheus")
    outcomes = ("--outcomes", str(tmp_path / "outcomes"))
    served = start_serving(bundle.folder, tmp_path / "serve.log", "--status-port", "0", "--require-triton", *outcomes)
    target = re.findall(r"metrics and health at http://(\S+)", served.log)[-1]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "prometheus" / "alerts.yml")],
        "scrape_configs": [{"job_name": "gateway", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    [port] = find_free_ports(1)
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)
    assert served.stop() == 0


def query(url, expression):
    """Series that an expression has now; none while Prometheus starts."""
    words = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{words}", timeout=10) as response:
            return json.load(response)["data"]["result"]
    except OSError:
        return []


def test_every_query_has_a_series_in_the_first_minute_of_a_service_that_nobody_has_called(prometheus):
    found = [
        target["expr"].replace("$__rate_interval", "5s") for panel in DASHBOARD["panels"] for target in panel["targets"]
    ]
    missing = set(found) - ONLY_WITH_A_GPU
    assert len(missing) > 15

    def are_all_there():
        missing.difference_update([one for one in missing if query(prometheus, one)])
        return not missing

    try:
        wait_until(are_all_there, timeout_s=30)
    except AssertionError:
        raise AssertionError(f"no series: {sorted(missing)}") from None
    # The autoscaler of the Tritons reads this one.
    assert query(prometheus, 'listing_vision_gateway_stage_seconds_sum{stage="queue"}')
    # Nothing is wrong with a service that was just started.
    assert query(prometheus, 'ALERTS{alertstate="firing"}') == []
