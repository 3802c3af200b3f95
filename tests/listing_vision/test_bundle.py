"""`bundle sign`, and every command that requires a signature, by their command lines."""

import shutil

import pytest
from typer.testing import CliRunner

from listing_vision.cli import app
from tests.support.cli import run_cli
from tests.support.signing import create_key_pair
from vision.errors import BundleError


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def signed(bundle, tmp_path):
    """A signed bundle and its public key."""
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    private, public = create_key_pair(tmp_path)
    done = invoke("bundle", "sign", folder, "--key", private)
    assert (done.exit_code, f"{bundle.release} is signed" in done.output) == (0, True), done.output
    return folder, public


def test_a_bundle_is_signed_and_verified(signed, bundle):
    folder, public = signed
    done = invoke("bundle", "verify", folder, "--key", public)
    assert (done.exit_code, f"{bundle.release} is what was signed" in done.output) == (0, True), done.output
    (folder / "model_card.md").write_text("another")
    done = run_cli("bundle", "verify", folder, "--key", public)
    assert (done.returncode, done.stdout) == (1, "")
    assert "model_card.md" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("backfill", "run", "manifest.csv", "--output", "{out}", "--model"),
        ("triton", "repository", "--backend", "python", "{bundle}", "{out}"),
        ("serve", "--in-process", "--port", "0"),
    ],
    ids=lambda words: words[0],
)
def test_what_is_not_signed_is_refused_where_it_must_be(command, bundle, tmp_path):
    _, public = create_key_pair(tmp_path)
    names = {"bundle": bundle.folder, "out": tmp_path / "out"}
    words = [word.format(**names) for word in command]
    if "{bundle}" not in command:
        words.append(str(bundle.folder))
    done = invoke(*words, "--require-signature", public)
    assert isinstance(done.exception, BundleError), done.output
    assert "has no model.sig" in str(done.exception)


def test_a_repository_is_written_from_a_signed_bundle(signed, tmp_path):
    folder, public = signed
    done = invoke(
        "triton", "repository", folder, tmp_path / "models", "--backend", "python", "--require-signature", public
    )
    assert done.exit_code == 0, done.output
