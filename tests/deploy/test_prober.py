"""The prober outside and the alert manager, by their own programs."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml

from serving.processes.sockets import find_free_ports
from tests.conftest import ROOT
from tests.support.callers import run_secured_gateway
from tests.support.certificates import Authority
from tests.support.waiting import wait_until

FOLDER = ROOT / "deploy" / "prometheus"


def require(program, debian):
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: apt-get install {debian}")


@contextlib.contextmanager
def run_exporter(folder, ca):
    """Yields the URL of a blackbox exporter with our module, which trusts `ca`."""
    config = folder / "blackbox.yml"
    config.write_text((FOLDER / "blackbox.yml").read_text().replace("/etc/blackbox/ca.pem", str(ca)))
    [port] = find_free_ports(1)
    command = ["prometheus-blackbox-exporter", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "exporter.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def probe(exporter, address):
    """Value of `probe_success`; None while the exporter starts."""
    try:
        with urllib.request.urlopen(f"{exporter}/probe?module=listing_vision&target={address}", timeout=10) as response:
            return int(re.search(r"^probe_success (\d)", response.read().decode(), re.MULTILINE)[1])
    except urllib.error.URLError:
        return None


def test_the_prober_sees_what_callers_see(bundle, tmp_path):
    require("prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
    ours, other = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "other", "other")
    certificate, key = ours.issue("server")

    async def run(exporter, distrustful):
        async with run_secured_gateway(bundle, tls_certificate=certificate, tls_key=key) as address:
            for one in (exporter, distrustful):
                # In a thread: the gateway runs in this event loop.
                await asyncio.to_thread(wait_until, lambda one=one: probe(one, address) is not None)
            up = [await asyncio.to_thread(probe, one, address) for one in (exporter, distrustful)]
        return up, await asyncio.to_thread(probe, exporter, address)

    (tmp_path / "distrustful").mkdir()
    with (
        run_exporter(tmp_path, ours.certificate) as exporter,
        run_exporter(tmp_path / "distrustful", other.certificate) as distrustful,
    ):
        assert asyncio.run(run(exporter, distrustful)) == ([1, 0], 0)


def test_what_prometheus_scrapes_is_the_module_of_the_exporter():
    (job,) = yaml.safe_load((FOLDER / "probe.yml").read_text())["scrape_configs"]
    assert job["params"]["module"] == list(yaml.safe_load((FOLDER / "blackbox.yml").read_text())["modules"])
    assert f'job="{job["job_name"]}"' in (FOLDER / "alerts.yml").read_text()


@pytest.mark.parametrize("severity", ["page", "ticket"])
def test_the_alert_manager_sends_each_severity_to_its_receiver(severity):
    require("amtool", "prometheus-alertmanager")
    config = f"--config.file={FOLDER / 'alertmanager.yml'}"
    subprocess.run(["amtool", "check-config", FOLDER / "alertmanager.yml"], check=True, capture_output=True)
    done = subprocess.run(
        ["amtool", "config", "routes", "test", config, f"severity={severity}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == severity


def test_inhibited_alerts_exist():
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    rules = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())["inhibit_rules"]
    named = {
        name
        for rule in rules
        for key in ("source_matchers", "target_matchers")
        for one in rule[key]
        for name in one.split('"')[1].split("|")
    }
    assert named <= alerts
