"""The verb `backfill`, killed, stopped and resumed; and its questions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.backfill.ledger import Ledger
from serving.storage import Store
from tests.conftest import ROOT
from tests.support.backfill import create_market, read_manifest, read_suggestions, write_manifest


@pytest.fixture
def market(tmp_path, synthetic_dataset):
    return create_market(tmp_path / "market", synthetic_dataset)


def cli(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "listing_vision", "backfill", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for_exit(process: subprocess.Popen) -> tuple[int, str]:
    said, _ = process.communicate(timeout=200)
    return process.returncode, said


def test_the_command_line_killed_and_stopped_ends_complete(bundle, market, tmp_path):
    # Each listing many times, so that there is something to interrupt.
    rows = read_manifest(market / "manifest.csv")
    many = [{**row, "listing_id": f"{row['listing_id']}-{copy}"} for copy in range(25) for row in rows]
    write_manifest(market / "manifest.csv", many)
    output = tmp_path / "out"
    command = ("run", market / "manifest.csv", "--model", bundle.folder, "--output", output, "--listings-per-shard", 20)
    store = Store(str(output))

    def wait_for_shards(process, num_shards: int) -> None:
        while process.poll() is None and len(store.list_files("_job/ledger")) < num_shards:
            time.sleep(0.02)

    done = 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = cli(*command, start_new_session=True)
        wait_for_shards(process, done + 3)
        os.kill(process.pid, number)
        code, said = wait_for_exit(process)
        assert code == (75 if number == signal.SIGTERM else -9), said
        done = len(store.list_files("_job/ledger"))
        assert not store.exists("_SUCCESS.json")
    code, said = wait_for_exit(cli(*command))
    assert code == 0, said
    assert "resuming:" in said
    assert "photos/s" in said
    assert "top category" in said
    code, said = wait_for_exit(cli("verify", output))
    assert (code, said.splitlines()[-1]) == (0, "valid")
    assert len(read_suggestions(store)) == len({row["listing_id"] for row in many})
    code, said = wait_for_exit(cli("status", output))
    assert (code, "done" in said.splitlines()[0]) == (0, True)
    code, said = wait_for_exit(cli("diff", output, output))
    assert code == 0, said
    Path(store.full_path(next(Ledger(store).entries()).suggestions.path)).unlink()
    assert wait_for_exit(cli("verify", output))[0] == 1


def test_a_target_and_an_output_that_do_not_exist_are_named(bundle, market, tmp_path):
    command = ("run", market / "manifest.csv", "--model", bundle.folder, "--output", tmp_path / "out")
    code, said = wait_for_exit(cli("status", tmp_path / "nothing"))
    assert (code, "holds no backfill" in said) == (1, True)
    code, said = wait_for_exit(cli(*command, "--target", "127.0.0.1:1"))
    assert (code, "--target 127.0.0.1:1" in said) == (1, True)
