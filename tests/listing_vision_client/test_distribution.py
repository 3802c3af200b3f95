"""The client is built alone, and needs gRPC, protobuf and googleapis-common-protos only."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import vision
from tests.conftest import ROOT

# What `pip install` of the three brings: gRPC imports typing_extensions.
ALLOWED = ("grpc", "google", "typing_extensions.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("checkout")
    # A copy: setuptools writes its build folders beside the sources.
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "listing_vision_client", folder / "listing_vision_client", ignore=ignored)
    (folder / "vision").mkdir()
    shutil.copy(ROOT / "vision" / "__init__.py", folder / "vision")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "./listing_vision_client", "-w", "wheels"], cwd=folder, check=True, timeout=120)
    (built,) = (folder / "wheels").glob("*.whl")
    return built


def test_the_wheel_has_the_client_alone_and_the_projects_version(wheel):
    assert wheel.name == f"listing_vision_client-{vision.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "listing_vision_client").rglob("*.py*")}
    ours = {name for name in ours if name.endswith((".py", ".pyi"))} | {"listing_vision_client/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == ours


def test_it_calls_a_service_with_its_dependencies_alone(wheel, fake_service, tmp_path):
    folder = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    for name in ALLOWED:
        package = importlib.util.find_spec(name.removesuffix(".py"))
        found = Path(package.origin or next(iter(package.submodule_search_locations)))
        (folder / name).symlink_to(found.parent if found.name == "__init__.py" else found)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import listing_vision_client as c; "
        "print(c.ListingVisionClient(sys.argv[2]).get_model().category_count, c.__file__)"
    )
    with fake_service() as service:
        # Isolated and without site-packages.
        command = [sys.executable, "-I", "-S", "-c", code, str(folder), service.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", str(folder / "listing_vision_client" / "__init__.py")]


def test_its_dependencies_are_those_of_the_gateway():
    ours = tomllib.loads((ROOT / "listing_vision_client" / "pyproject.toml").read_text())["project"]["dependencies"]
    gateway = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gateway"]
    assert [re.split(r"[>=]", one)[0] for one in ours] == ["googleapis-common-protos", "grpcio", "protobuf"]
    assert set(ours) <= set(gateway)
