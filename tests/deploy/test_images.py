"""The images are built from files and started by commands that exist."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib

import hcl2
import pytest

import vision
from scripts.check_base_images import find_missing_digests
from scripts.check_deploy import ROOT
from serving.triton.install import MODEL_ENVIRONMENT
from serving.triton.patched_version import TritonSecurity
from serving.triton.repository import list_decoding_code
from tests.support.deploy_settings import find_known_variables, parse_options
from tests.support.dockerfile import STAGES, find_last_value, read_environment

FINAL = ("gateway", "triton", "triton-torch", "training", "backfill")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("stage", FINAL)
def test_every_image_has_a_user_of_its_own_and_a_health_check(stage):
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", find_last_value(stage, "USER"))
    health = find_last_value(stage, "HEALTHCHECK")
    assert health == "NONE" if stage in ("training", "backfill") else "CMD" in health
    assert json.loads(find_last_value(stage, "ENTRYPOINT"))


def test_bases_are_exact_tags():
    outside = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert len(outside) == 2
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+[\d.]*-[\w-]+(@sha256:[0-9a-f]{64})?", base) for base in outside)


def test_entry_points_exist(monkeypatch):
    assert "listing-vision" in PROJECT["scripts"]
    init, separator, program, *_ = json.loads(find_last_value("gateway", "ENTRYPOINT"))
    assert (init, separator, program) == ("tini", "--", "listing-vision")
    command = json.loads(find_last_value("gateway", "CMD"))
    assert parse_options(command, read_environment("gateway"), monkeypatch)["host"] == "0.0.0.0"
    assert json.loads(find_last_value("backfill", "CMD"))[0] == "listing-vision"
    module = json.loads(find_last_value("training", "ENTRYPOINT"))[-1]
    assert importlib.util.find_spec(module)
    copied = shlex.split(find_last_value("triton", "COPY"))[-2:]
    assert (ROOT / copied[0]).stat().st_mode & 0o111
    assert copied[1] == f"/usr/local/bin/{json.loads(find_last_value('triton', 'ENTRYPOINT'))[0]}"


def test_variables_are_read_by_some_code():
    assert set(re.findall(r"LISTING_VISION_[A-Z_]+", (ROOT / "Dockerfile.gpu").read_text())) <= find_known_variables()


def test_the_gateways_health_check_calls_its_status_port():
    environment = read_environment("gateway")
    port = environment["LISTING_VISION_STATUS_PORT"]
    assert f"http://127.0.0.1:{port}/readyz" in find_last_value("gateway", "HEALTHCHECK")
    assert find_last_value("gateway", "EXPOSE").split() == [environment["LISTING_VISION_PORT"], port]


def test_a_model_in_triton_finds_its_own_python_first_with_what_it_needs():
    path = read_environment("triton-torch")["PATH"].split(":")
    made = next(value for name, value in STAGES["triton-packages"].lines if name == "RUN")
    assert f"-m venv --without-pip {path[0].removesuffix('/bin')} " in made
    assert shlex.split(find_last_value("triton-torch", "COPY"))[-1] == path[0].removesuffix("/bin")
    listed = (ROOT / "deploy" / "triton" / "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0]: line for line in listed if not line.startswith("#")}
    tried = {line.partition("==")[0]: line for line in MODEL_ENVIRONMENT}
    assert names["numpy"] == tried["numpy"]
    # All that the models' code imports, except the standard library and what Triton provides.
    sources = [path for name in ("model.py", "gpu_model.py") for path in (ROOT / "serving/triton/backend").glob(name)]
    sources += [ROOT / name for name in list_decoding_code(on_gpu=True)]
    imported = {
        found.partition(".")[0]
        for source in sources
        for found in re.findall(r"^\s*(?:import|from) ([\w.]+)", source.read_text(), re.MULTILINE)
    }
    given = {*sys.stdlib_module_names, "triton_python_backend_utils", "serving", "vision"}
    packages = {"PIL": "pillow", "pi_heif": "pi-heif"}
    assert {packages.get(name, name) for name in imported - given} == set(names)


@pytest.mark.parametrize("stage", [name for name in STAGES if name == "wheel" or name.endswith("-packages")])
def test_images_install_only_packages_whose_hashes_are_known(stage):
    installs = [value for name, value in STAGES[stage].lines if name == "RUN" and " install " in value]
    assert installs
    assert all("--require-hashes" in value for value in installs)


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_builder():
    copied = {
        word
        for stage in STAGES.values()
        for name, value in stage.lines
        if name == "COPY" and "--from=" not in value
        for word in [word for word in shlex.split(value) if not word.startswith("--")][:-1]
    }
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert all((ROOT / path).exists() for path in copied)


def test_bake_makes_the_images_that_the_dockerfile_describes():
    found = hcl2.loads((ROOT / "docker-bake.hcl").read_text())
    text = lambda value: value.strip('"')  # noqa: E731  # some versions of hcl2 keep the quotes
    variables = {text(name): text(body["default"]) for one in found["variable"] for name, body in one.items()}
    targets = {text(name): body for one in found["target"] for name, body in one.items()}
    assert set(targets) == {"all", *FINAL}
    assert {text(body["target"]) for name, body in targets.items() if name != "all"} == set(FINAL)
    assert variables["VERSION"] == vision.__version__
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert {variables["PYTHON_IMAGE"], variables["TRITON_IMAGE"]} == bases


def test_the_images_have_the_triton_that_answers_the_security_bulletins():
    image = TritonSecurity.load().image
    assert STAGES["triton"].base == image
    assert f'default = "{image}"' in (ROOT / "docker-bake.hcl").read_text()


def test_a_release_needs_base_images_by_digest():
    missing = find_missing_digests({"PYTHON_DIGEST": "sha256:abc"})
    assert [line.split()[0] for line in missing] == ["PYTHON_DIGEST", "TRITON_DIGEST"]
    assert all("imagetools inspect" in line for line in missing)
    digest = f"sha256:{'0' * 64}"
    assert find_missing_digests({"PYTHON_DIGEST": digest, "TRITON_DIGEST": digest}) == []
    # Nothing is built before the check.
    done = subprocess.run(
        ["make", "--no-print-directory", "images", "RELEASE=1", f"BIN={sysconfig.get_path('scripts')}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON_DIGEST": digest},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "TRITON_DIGEST" in done.stderr
