"""Requirements files: every package that is installed has an exact version and hashes."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lock import EXTRAS, FOLDER, TRITON_REQUIREMENTS, read_pins
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
    assert len(packages) == len(pins)
    assert all("--hash=sha256:" in block for block in packages)


@pytest.mark.parametrize("name", ["fuzz", "gateway", "training", "backfill", "triton"])
def test_the_same_versions_are_installed_everywhere(name):
    setup, pins = read_pins(FOLDER / "setup.txt"), read_pins(FOLDER / f"{name}.txt")
    differing = {package for package, version in pins.items() if setup.get(package, version) != version}
    assert differing == ({"numpy"} if name == "triton" else set())


def test_a_gateway_has_all_extras_that_are_for_it_and_no_torch():
    assert set(EXTRAS["gateway"].split()) == {"gateway", "http", "outcomes", "photo-uris", "signing", "traces"}
    assert not {"torch", "torchvision", "timm", "ray", "onnxruntime"} & set(read_pins(FOLDER / "gateway.txt"))
