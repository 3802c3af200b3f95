"""The command line as a user meets it: examples, exit codes, one clear line for a failure."""

import json
import subprocess
import sys

import pytest
import typer.main

from listing_vision.cli import app, main
from tests.conftest import ROOT
from tests.support.cli import run_cli
from tests.support.helpers import create_scene, encode_image
from tests.support.waiting import wait_until
from vision.errors import ManifestError
from vision.manifest import Manifest

TREE = typer.main.get_command(app)


def commands():
    def walk(command, path):
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, (*path, name))
        else:
            yield path, command

    return list(walk(TREE, ()))


@pytest.mark.parametrize(
    ("path", "command"), commands(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_verb_shows_an_example(path, command):
    assert f"Example: listing-vision {' '.join(path)} " in f"{command.help} "


def test_the_verbs_of_the_work_are_all_there():
    names = {path[0] for path, _ in commands()}
    assert names == {
        *(
            "data",
            "bundle",
            "taxonomy",
            "recipes",
            "train",
            "distill",
            "runs",
            "tune",
            "evaluate",
            "compare",
            "export",
            "convert",
            "brand",
            "calibrate",
            "calibrate-plan",
            "serve",
            "model",
            "backfill",
            "experiment",
            "outcomes",
            "plan",
            "classify",
            "demo",
            "triton",
            "version",
        )
    }
    data_verbs = {path[1] for path, _ in commands() if path[0] == "data"}
    assert data_verbs == {"check", "synthesize", "from-outcomes", "import", "shard", "split", "suspects"}


def test_no_torch_is_needed_to_serve_or_to_see_the_help():
    code = (
        "import sys, listing_vision.cli, serving.gateway.server, listing_vision_client, listing_vision.classify; "
        "heavy = {'torch', 'torchcodec', 'torchvision', 'timm', 'pyarrow', 'scipy', 'onnxruntime'}; "
        "assert not heavy & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_usage_errors_exit_2():
    assert run_cli("train").returncode == 2
    assert run_cli("nonsense").returncode == 2
    assert run_cli("classify", "x.jpg").returncode == 2
    assert run_cli("triton", "repository", "b", "o", "--backend", "paddle").returncode == 2


@pytest.fixture
def fast_lines(monkeypatch):
    for name in ("FIRST_LOG_AFTER_S", "LOG_EVERY_S"):
        monkeypatch.setattr(f"vision.runtime.progress.{name}", 0.01)


def fill_required(command):
    """Return words for the required arguments and options of a command."""
    words = []
    for parameter in (parameter for parameter in command.params if parameter.required):
        words += ["5"] if parameter.param_type_name == "argument" else [parameter.opts[0], "5"]
    return words


@pytest.mark.parametrize(
    ("path", "command"), commands(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_verb_is_named_while_it_shows_nothing_else(path, command, monkeypatch, caplog, fast_lines):
    def import_torch_for_long(**_):
        wait_until(lambda: len(caplog.messages) >= 2, timeout_s=60)

    monkeypatch.setattr(command, "callback", import_torch_for_long)
    monkeypatch.setattr("typer.main.get_command", lambda _: TREE)
    monkeypatch.setattr("sys.argv", ["listing-vision", *path, *fill_required(command)])
    with caplog.at_level("INFO"), pytest.raises(SystemExit, match="0"):
        main()
    assert set(caplog.messages) == {f"{' '.join(path)}: 0 s so far"}


@pytest.mark.parametrize(
    "words",
    [
        "data check MANIFEST",
        "data split MANIFEST --output NEW/split.parquet",
        "tune loader MANIFEST",
        "train MANIFEST --run NEW --workers 0",
        "evaluate BUNDLE MANIFEST",
        "calibrate BUNDLE MANIFEST --output NEW",
    ],
)
def test_a_verb_is_not_silent_while_it_reads_a_long_manifest(
    words, bundle, synthetic_dataset, tmp_path, monkeypatch, caplog, fast_lines
):
    lines = []

    def read_for_long(_):
        num_before = len(caplog.messages)
        wait_until(lambda: len(caplog.messages) >= num_before + 2, timeout_s=60)
        lines.extend(caplog.messages)
        raise ManifestError("read long enough")

    places = {"MANIFEST": synthetic_dataset / "manifest.parquet", "BUNDLE": bundle.folder, "NEW": tmp_path / "new"}
    for name, place in places.items():
        words = words.replace(name, str(place))
    monkeypatch.setattr(Manifest, "load", read_for_long)
    monkeypatch.setattr("sys.argv", ["listing-vision", *words.split()])
    with caplog.at_level("INFO"), pytest.raises(SystemExit, match="1"):
        main()
    assert lines[-1].endswith("s so far")


def test_failures_exit_1_with_one_line_and_no_traceback(tmp_path):
    done = run_cli("serve", tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.endswith("s so far")] == [
        f"listing-vision: {tmp_path} is not a model bundle (no manifest.json); `listing-vision export` makes one"
    ]
    assert "Traceback" in run_cli("serve", tmp_path, "--debug").stderr


def test_import_check_evaluate_and_classify(tmp_path, bundle, synthetic_dataset):
    for split in ("train", "val", "test"):
        photo = tmp_path / "photos" / split / "Cups" / f"{split}.jpg"
        photo.parent.mkdir(parents=True)
        photo.write_bytes(encode_image(create_scene(200 + len(split) * 40, 160)))
    done = run_cli("data", "import", "folder", tmp_path / "photos", "--output", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "3 photos" in done.stdout

    (tmp_path / "photos" / "val" / "Cups" / "val.jpg").write_bytes(b"")
    done = run_cli("data", "check", tmp_path / "data" / "manifest.parquet")
    assert done.returncode == 1
    assert "PHOTO_EMPTY" in done.stdout

    report = tmp_path / "report"
    done = run_cli(
        "evaluate", bundle.folder, synthetic_dataset / "manifest.parquet", "--output", report, "--photos-per-listing", 3
    )
    assert done.returncode == 0, done.stderr
    assert f"written: {report / 'report.html'}" in done.stdout
    figures = json.loads((report / "metrics.json").read_text())
    assert figures["listing"]["frequency"]["counted_on"] == "the manifest's train split"
    assert bundle.info.model_version in (report / "report.html").read_text()
    assert figures["split"] == "test"
    assert figures["photo"]["num"] > figures["listing"]["num"]
    assert "per listing" in done.stdout

    done = run_cli("classify", synthetic_dataset / "photos" / "test-00000-0.jpg", "--bundle", bundle.folder, "--json")
    assert json.loads(done.stdout)["model"]["version"] == bundle.info.model_version


def test_the_version_is_an_option_too():
    assert run_cli("--version").stdout == run_cli("version").stdout
