"""`make release` and the workflows that call it."""

import datetime
import json
import re
import subprocess
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest
import yaml

import vision
from scripts import release
from scripts.check_version import find_other_versions
from tests.conftest import ROOT
from tests.support.dockerfile import STAGES

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("distributions are built from a commit; this is no git checkout")
    return release.build_distributions(tmp_path_factory.mktemp("dist"))


def test_sdist_wheel_and_the_clients_wheel_are_built_with_all_that_is_installed(distributions):
    version = vision.__version__
    assert [path.name for path in distributions] == [
        f"listing_vision-{version}-py3-none-any.whl",
        f"listing_vision-{version}.tar.gz",
        f"listing_vision_client-{version}-py3-none-any.whl",
    ]
    names = set(zipfile.ZipFile(distributions[0]).namelist())
    installed = {"listing_vision/cli.py", "serving/triton/packages.txt", "serving/http_api/openapi.json"}
    packages = ("listing_vision", "listing_vision_client", "serving", "training", "vision")
    installed |= {f"{package}/py.typed" for package in packages}
    assert installed < names
    assert not {name.split("/")[0] for name in names} & {"tests", "benchmarks", "scripts"}
    with tarfile.open(distributions[1]) as files:
        packed = {name.partition("/")[2] for name in files.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", *installed} <= packed


def test_the_provenance_names_each_file_and_the_commit(distributions):
    statement = release.build_provenance(distributions, started=datetime.datetime.now(datetime.UTC))
    assert [one["name"] for one in statement["subject"]] == [path.name for path in distributions]
    assert all(re.fullmatch(r"[0-9a-f]{64}", one["digest"]["sha256"]) for one in statement["subject"])
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    source = statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]
    assert source["digest"]["gitCommit"] == release.read_git("rev-parse", "HEAD")
    json.dumps(statement)


def test_every_extra_is_tried():
    assert set(release.IMPORTS) == set(PROJECT["optional-dependencies"])


def test_changelog_images_and_manifests_have_the_packages_version():
    assert find_other_versions(vision.__version__) == []
    others = find_other_versions("9.9.9")
    assert others[:2] == [
        f"{name} has {vision.__version__}, the package is 9.9.9" for name in ("CHANGELOG.md", "docker-bake.hcl")
    ]
    tagged = {line.split(" has ")[0] for line in others}
    with_tags = {path for path in (ROOT / "deploy").rglob("*.yaml") if vision.__version__ in path.read_text()}
    assert {str(path.relative_to(ROOT)) for path in with_tags} < tagged


def test_a_checkout_with_changes_is_not_released(monkeypatch):
    monkeypatch.setattr(release, "read_git", lambda *arguments: " M README.md")
    assert release.find_objections()[0].startswith("uncommitted changes:\n M README.md")


def test_what_the_changelog_lists_as_unreleased_is_not_released(monkeypatch, tmp_path):
    monkeypatch.setattr(release, "read_git", lambda *arguments: "")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    for text, is_named in (("- A change.\n\n", True), ("", False)):
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\n{text}## 1.0.0\n")
        assert any("Unreleased" in line for line in release.find_objections()) == is_named


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_make_alone(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"].strip() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, target, *_ = command.split()
        assert (program, target in targets) == ("make", True), command


def test_every_python_that_is_declared_is_tried_and_images_have_one_of_them():
    declared = {one.rpartition(" ")[2] for one in PROJECT["classifiers"]}
    checks = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    assert set(checks["jobs"]["test"]["strategy"]["matrix"]["python"]) == declared
    assert re.match(r"python:(3\.\d+)\.", STAGES["python"].base)[1] in declared
    client = tomllib.loads((ROOT / "listing_vision_client" / "pyproject.toml").read_text())["project"]
    assert client["classifiers"] == PROJECT["classifiers"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_the_least_permissions_and_pinned_actions(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        needed = {"contents": "read"}
        if any("attest" in step.get("uses", "") for step in job["steps"]):
            needed |= {"id-token": "write", "attestations": "write"}
        assert job["permissions"] == needed
        assert job["timeout-minutes"]
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.search(r"@[0-9a-f]{40}$", one) for one in used)


def test_the_linter_finds_what_is_wrong_in_a_workflow(tmp_path):
    bad = tmp_path / "bad.yml"
    text = WORKFLOWS[0].read_text()
    bad.write_text(re.sub(r"checkout@[0-9a-f]+ # \S+", "checkout@v7", text).replace("permissions: {}", ""))
    zizmor = f"{sysconfig.get_path('scripts')}/zizmor"
    done = subprocess.run([zizmor, "--offline", "--quiet", str(bad)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "unpinned-uses" in done.stdout
