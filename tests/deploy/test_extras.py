"""Extras: each declares every package that the code which it is for imports."""

import sys
import tomllib
from importlib import metadata

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((ROOT / "listing_vision_client" / "pyproject.toml").read_text())["project"]
EXTRAS_BY_PACKAGE = {
    "training": "train explain signing mlflow wandb",
    "serving.capacity": "gateway local signing traces outcomes photo-uris",
    "serving.supervisor": "gateway local signing traces outcomes photo-uris",
    "serving.http_api": "gateway http local signing traces",
    "serving.backfill": "backfill gateway ray signing traces",
}
"""What is installed where a package runs, each part of it that an option of its own asks for included."""
NOT_IN_SETUP = {"mlflow": ["mlflow-skinny"]}
"""Distributions of packages that `make setup` does not install, where their names differ."""
IN_TRITONS_PYTHON = {"serving.triton.backend.model", "serving.triton.backend.gpu_model"}


@pytest.fixture(scope="module")
def graph():
    packages = ("vision", "training", "serving", "listing_vision", "listing_vision_client")
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def list_imported(graph, package):
    """Return the packages of others that a package and all that it imports import."""
    modules = {package, *graph.find_descendants(package)}
    reached = modules.union(*(graph.find_upstream_modules(module) for module in modules)) - IN_TRITONS_PYTHON
    imported = {other for module in reached for other in graph.find_modules_directly_imported_by(module)}
    return {name for name in imported if graph.is_module_squashed(name)} - set(sys.stdlib_module_names)


def find_undeclared(graph, package, requirements):
    declared = {canonicalize_name(Requirement(line).name) for line in requirements}
    distributions = NOT_IN_SETUP | dict(metadata.packages_distributions())
    imported = list_imported(graph, package)
    assert imported
    return {
        name for name in imported if not declared & {canonicalize_name(one) for one in distributions.get(name, [name])}
    }


@pytest.mark.parametrize("package", EXTRAS_BY_PACKAGE)
def test_what_a_package_imports_is_declared_by_its_extras(graph, package):
    extras = [PROJECT["optional-dependencies"][extra] for extra in EXTRAS_BY_PACKAGE[package].split()]
    assert find_undeclared(graph, package, sum(extras, PROJECT["dependencies"])) == set()


def test_what_the_client_imports_is_declared_by_its_own_wheel(graph):
    assert find_undeclared(graph, "listing_vision_client", CLIENT["dependencies"]) == set()
