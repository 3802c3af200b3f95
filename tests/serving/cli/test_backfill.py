"""Usage errors and exit codes of `backfill`; whole jobs run in tests/serving/backfill."""

import pytest
from typer.testing import CliRunner

from serving.cli.backfill import backfill_app
from vision.errors import ListingVisionError


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--rate", "5"], "--rate"),
        (["--ray", "--target", "localhost:1"], "--ray"),
        (["--ray-address", "auto", "--cores", "2"], "--ray"),
        (["--top-k", "101"], "--top-k"),
    ],
)
def test_wrong_usage_exits_2_and_names_the_flag(words, flag, tmp_path):
    required = ["run", "manifest.csv", "--model", "bundle", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(backfill_app, [*required, *words])
    assert (done.exit_code, flag in done.output) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["status", "verify"])
def test_a_folder_without_a_backfill_is_a_failure(verb, tmp_path):
    done = CliRunner().invoke(backfill_app, [verb, str(tmp_path)])
    assert isinstance(done.exception, ListingVisionError)
    assert "holds no backfill" in str(done.exception)
