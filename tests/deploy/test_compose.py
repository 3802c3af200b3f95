"""The Compose file agrees with the project, and restricts its containers as the manifests do."""

import re

import yaml

import vision
from scripts.check_deploy import COMPOSE, COMPOSE_DECODE, DEPLOY
from tests.support.deploy_settings import find_known_variables, parse_options
from tests.support.dockerfile import read_environment

SERVICES = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if "listing-vision" in service["image"]}


def test_variables_are_read_by_some_code():
    assert set(re.findall(r"LISTING_VISION_[A-Z_]+", COMPOSE.read_text())) <= find_known_variables()


def test_the_gateway_speaks_tls_and_calls_the_triton_beside_it(monkeypatch):
    gateway = SERVICES["gateway"]
    options = parse_options(["serve"], read_environment("gateway") | gateway["environment"], monkeypatch)
    host, port = options["triton"].split(":")
    assert (host in SERVICES, port) == (True, "8001")
    assert not options["insecure"]
    targets = [volume.rsplit(":", 2)[1] for volume in gateway["volumes"]]
    assert str(options["bundle"]) in targets
    assert str(options["tokens"]) in targets
    assert str(options["tls_certificate"].parent) in targets
    assert gateway["ports"] == [f"{options['port']}:{options['port']}"]
    assert options["status_port"] == 9090


def test_the_repository_is_written_before_triton_starts(monkeypatch):
    options = parse_options(SERVICES["repository"]["command"], {}, monkeypatch)
    assert options["replace"]
    assert f"models:{options['output']}" in SERVICES["repository"]["volumes"]
    assert f"models:{options['output']}:ro" in SERVICES["triton"]["volumes"]
    assert SERVICES["triton"]["depends_on"] == {"repository": {"condition": "service_completed_successfully"}}
    assert SERVICES["gateway"]["depends_on"] == {"triton": {"condition": "service_healthy"}}


def test_everything_is_locked_down_and_only_callers_get_in():
    for service in SERVICES.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"\d+g", service["mem_limit"])
        assert service["pids_limit"] >= 200
        assert all(re.search(r":size=\d+[mg]$", one) for one in service.get("tmpfs", []))
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway", "grafana"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["grafana"]["ports"])
    assert SERVICES["triton"]["networks"] == ["model"]
    assert yaml.safe_load(COMPOSE.read_text())["networks"]["model"] == {"internal": True}


def test_images_are_those_that_are_built_by_version():
    for service in OURS.values():
        assert service["image"].endswith(f":${{VERSION:-{vision.__version__}}}")
    assert all(
        re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"]) for name in SERVICES.keys() - OURS.keys()
    )


def test_files_that_are_mounted_exist_and_prometheus_scrapes_services_that_exist():
    mounted = re.findall(r"- \./(\S+?):", COMPOSE.read_text())
    assert mounted
    assert [path for path in mounted if not (DEPLOY / path).exists()] == []
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {one["static_configs"][0]["targets"][0] for one in config["scrape_configs"]}
    assert targets == {"gateway:9090", "triton:8002"}


def test_a_triton_that_decodes_has_pytorch_and_its_repository(monkeypatch):
    changed = yaml.safe_load(COMPOSE_DECODE.read_text())["services"]
    assert set(changed) <= set(SERVICES)
    options = parse_options(changed["repository"]["command"], {}, monkeypatch)
    assert options == parse_options(SERVICES["repository"]["command"], {}, monkeypatch) | {"backend": "python-gpu"}
    assert changed["triton"]["image"] == SERVICES["triton"]["image"].replace("-triton:", "-triton-torch:")
