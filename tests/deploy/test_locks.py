"""Requirements files: every package that is installed has an exact version and hashes."""

import json
import re
import subprocess
import sysconfig
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lock import EXTRAS, FOLDER, TRITON_PACKAGES, TRITON_REQUIREMENTS, read_pins
from serving.triton.install import MODEL_ENVIRONMENT, PYTRITON
from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def list_requirements(name):
    if name == "build":
        lines = PYPROJECT["build-system"]["requires"]
    elif name == "triton":
        lines = [line for line in TRITON_REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    else:
        extras = [line for extra in EXTRAS[name].split() for line in PROJECT["optional-dependencies"][extra]]
        lines = [*PROJECT["dependencies"], *extras]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", [*EXTRAS, "build", "triton"])
def test_all_that_is_required_is_pinned_with_hashes(name):
    path = FOLDER / f"{name}.txt"
    pins = {canonicalize_name(package): version for package, version in read_pins(path).items()}
    for requirement in list_requirements(name):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, requirement
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
    blocks = re.split(r"^(?=\S)", path.read_text(), flags=re.MULTILINE)
    packages = [block for block in blocks if "==" in block]
    assert len({re.match(r"[\w.-]+", block)[0] for block in packages}) == len(pins)
    assert all("--hash=sha256:" in block for block in packages)


@pytest.mark.parametrize("name", ["setup", "gateway", "training"])  # what is installed here
def test_extras_that_packages_require_of_each_other_are_pinned_as_such(name):
    # Else pip before 23.1, which Debian 12 brings, refuses the file: `pydantic[email]` has no hashes.
    path = FOLDER / f"{name}.txt"
    pinned = {
        canonicalize_name(package): set(extras.split(",")) - {""}
        for package, extras in re.findall(r"^([\w.-]+)(?:\[(.*)\])?==", path.read_text(), re.MULTILINE)
    }
    required = [Requirement(line) for package in pinned for line in metadata.requires(package) or ()]
    required = [one for one in required if one.extras and (one.marker is None or one.marker.evaluate({"extra": ""}))]
    assert required
    missing = {str(one) for one in required if not one.extras <= pinned.get(canonicalize_name(one.name), set())}
    assert missing == set()


@pytest.mark.parametrize("name", ["setup", "gateway", "training"])  # what is installed here
@pytest.mark.parametrize("python", [one.rpartition(" ")[2] for one in PROJECT["classifiers"]])
def test_every_python_finds_all_that_it_needs(name, python):
    pins = {canonicalize_name(package): version for package, version in read_pins(FOLDER / f"{name}.txt").items()}
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    required = [Requirement(line) for package in pins for line in metadata.requires(package) or ()]
    missing = {
        str(one)
        for one in required
        if (one.marker is None or one.marker.evaluate(environment))
        and not one.specifier.contains(pins.get(canonicalize_name(one.name), ""), prereleases=True)
    }
    assert missing == set()


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_pinned_with_extras_is_pinned_without_them_too(name):
    # pip 23.2 does not find a pin with extras for a package that another one requires without.
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    with_extras = {re.sub(r"\[.*?\]", "", line) for line in lines if re.match(r"[\w.-]+\[", line)}
    assert with_extras <= set(lines)


@pytest.mark.parametrize("name", ["fuzz", "gateway", "training", "backfill", "triton"])
def test_the_same_versions_are_installed_everywhere(name):
    setup, pins = read_pins(FOLDER / "setup.txt"), read_pins(FOLDER / f"{name}.txt")
    differing = {package for package, version in pins.items() if setup.get(package, version) != version}
    assert differing == ({"numpy"} if name == "triton" else set())


def test_a_gateway_has_all_extras_that_are_for_it_and_no_torch():
    assert set(EXTRAS["gateway"].split()) == {"gateway", "http", "outcomes", "photo-uris", "signing", "traces"}
    assert not {"torch", "torchcodec", "torchvision", "timm", "ray", "onnxruntime"} & set(
        read_pins(FOLDER / "gateway.txt")
    )


def test_only_the_image_for_ray_has_opencensus():
    # Unmaintained since 2023; Ray's cluster launcher still requires it.
    having = {path.stem for path in FOLDER.glob("*.txt") if any("opencensus" in package for package in read_pins(path))}
    assert having == {"backfill"}


def test_all_that_triton_install_downloads_has_hashes():
    blocks = re.split(r"^(?=[a-z0-9])", TRITON_PACKAGES.read_text(), flags=re.MULTILINE)[1:]
    assert {block.split()[0] for block in blocks} == {PYTRITON, *MODEL_ENVIRONMENT}
    assert all("--hash=sha256:" in block for block in blocks)


def test_a_bill_of_materials_names_each_package_with_its_hashes(tmp_path):
    path = tmp_path / "gateway.cdx.json"
    command = ["make", "--silent", f"SBOM={tmp_path}", f"BIN={sysconfig.get_path('scripts')}", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    bill = json.loads(path.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == PROJECT["name"]
    assert {one["name"]: one["version"] for one in bill["components"]} == read_pins(FOLDER / "gateway.txt")
    assert all(one["externalReferences"][0]["hashes"] for one in bill["components"])
