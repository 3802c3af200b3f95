"""Alert rules by promtool's own tests, and every metric that rules and dashboard name by what is really exported."""

import asyncio
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import prometheus_client
import pytest
import yaml

import serving.observability.metrics  # noqa: F401  registers what a gateway process exports
from serving.api.status import CODES
from serving.gateway import service
from serving.supervisor.supervisor import ServeOptions, Supervisor
from tests.conftest import ROOT
from tests.support.waiting import wait_until
from training.outcomes.text_report import GUARANTEE_METRICS
from vision.errors import PhotoError

RUNBOOKS = ROOT / "docs" / "runbooks"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "listing-vision.json").read_text())
ONLY_WITH_A_GPU = {"nv_gpu_utilization"}
"""Metrics of Triton that it does not export without a GPU."""


def read_alert_expressions():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def read_recorded_metrics():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
@pytest.mark.parametrize("words", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_takes_the_rules_and_their_tests_pass(words):
    done = subprocess.run(["promtool", *words], cwd=RULES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    tested = set(re.findall(r"alertname: (\w+)", (RULES.parent / "alerts_test.yml").read_text()))
    assert alerts == tested


def test_every_alert_has_a_runbook_that_says_what_to_check_and_to_do():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = {rule["alert"]: rule["annotations"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert {path.stem for path in RUNBOOKS.iterdir()} == set(alerts)
    for name, annotations in alerts.items():
        assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
        text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {name}\n")
        sections = re.findall(r"^\*\*Impact\.\*\* \S|^## (?:Check|Act)\n\n- \S", text, re.MULTILINE)
        assert len(sections) == 3, name
        links = re.findall(r"\]\(([^)#]+)", text)
        assert all((RUNBOOKS / link).exists() for link in links), links


def test_rules_and_dashboard_name_only_metrics_that_are_exported(bundle, running_triton):
    texts = [*read_alert_expressions(), *(path.read_text() for path in RUNBOOKS.iterdir())]
    named = {name for e in texts for name in re.findall(r"\b(?:listing_vision|nv)_\w+", e)}
    ours = {sample for family in prometheus_client.REGISTRY.collect() for sample in _samples(family)}
    supervisor = Supervisor(ServeOptions(bundle=bundle.folder))
    ours |= set(_find_types(supervisor.status_pages["/metrics"]().body.decode()))
    ours |= set(GUARANTEE_METRICS)
    asyncio.run(supervisor.stop())
    wait_until(lambda: fetch(running_triton.metrics_url), "Triton's metrics")
    tritons = set(_find_types(fetch(running_triton.metrics_url)))
    assert {name for name in named if name.startswith("listing_vision")} <= ours
    assert {name for name in named if name.startswith("nv_")} - ONLY_WITH_A_GPU <= tritons
    assert {
        name for e in read_alert_expressions() for name in re.findall(r"listing_vision:[\w:]+", e)
    } <= read_recorded_metrics()


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read().decode()
    except urllib.error.URLError:  # Triton opens its ports one after another
        return ""


def _find_types(text):
    return re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)


def _samples(family):
    kinds = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + suffix for suffix in kinds.get(family.type, [""])}


def test_labels_that_rules_choose_by_are_those_of_the_metrics():
    rules = RULES.read_text()
    reasons = set(re.findall(r'result(?:=~|=|!=)"([A-Z_|]+)"', rules))
    photos = {error.reason for error in PhotoError.__subclasses__()}
    known = {*CODES, *photos, service.OK, service.CANCELLED}
    assert {reason for found in reasons for reason in found.split("|")} <= known
