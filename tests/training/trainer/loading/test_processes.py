import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader, Dataset

from training.errors import RunError
from training.trainer.loading.dataloader import create_evaluation_batches
from training.trainer.loading.processes import LOADER_CONTEXT, LoaderStart, SharedTable, start_loader_server
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

LOCK = threading.Lock()


class Probe(Dataset):
    """Answers from a loader process."""

    def __init__(self, ask):
        self.ask = ask

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.ask()


def ask_loader(ask):
    loader = DataLoader(
        Probe(ask),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=LOADER_CONTEXT,
        worker_init_fn=LoaderStart(),
        timeout=60,
    )
    return next(iter(loader))


def take_lock():
    with LOCK:
        return "taken"


def test_a_lock_that_a_thread_holds_does_not_stop_the_loader():
    with LOCK:
        assert ask_loader(take_lock) == "taken"


def read_variable():
    return os.environ.get("LOADER_TEST_VARIABLE")


def test_loader_processes_see_variables_that_are_set_after_the_server_was_started(monkeypatch):
    start_loader_server()
    monkeypatch.setenv("LOADER_TEST_VARIABLE", "late")
    assert ask_loader(read_variable) == "late"


def test_photos_are_loaded_by_processes_that_were_not_forked_here(synthetic_dataset):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    labels = manifest.resolve_labels(Taxonomy.load(synthetic_dataset / "taxonomy.json"))
    before = set(multiprocessing.active_children())
    batches = iter(create_evaluation_batches(manifest, labels, Preprocessing(input_px=32), batch_size=4, num_workers=2))
    next(batches)
    begun = set(multiprocessing.active_children()) - before
    assert len(begun) == 2
    assert os.getpid() not in {read_parent(process.pid) for process in begun}


def read_parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class TableProbe(Probe):
    def __init__(self, shared):
        self.shared = shared

    def __getitem__(self, index):
        return self.shared.table.to_pydict(), pa.total_allocated_bytes()


def test_a_shared_table_is_mapped_not_copied():
    table = pa.table(
        {"photo": pa.array([f"{i}.jpg" for i in range(100_000)], pa.large_string()), "node": range(100_000)}
    )
    loader = DataLoader(
        TableProbe(SharedTable(pa.concat_tables([table, table]))),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=LOADER_CONTEXT,
    )
    for columns, allocated_bytes in loader:
        assert columns == pa.concat_tables([table, table]).to_pydict()
        assert allocated_bytes < 100_000


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(RunError, match="No space left on device; make room, set TMPDIR"):
        SharedTable(pa.table({"node": np.zeros(3)})).__reduce__()


# No `__main__` guard: a notebook has none either.
SCRIPT = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
print("begun", os.getpid(), flush=True)
signal.signal(signal.SIGTERM, lambda *_: None)
from training.trainer.loading.dataloader import create_evaluation_batches
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

manifest = Manifest.load(sys.argv[1] + "/manifest.parquet")
labels = manifest.resolve_labels(Taxonomy.load(Path(sys.argv[1]) / "taxonomy.json"))
loader = create_evaluation_batches(manifest, labels, Preprocessing(input_px=32), batch_size=4, num_workers=2)
batches = iter(loader)
num_photos = len(next(batches).rows)
print("loaders", *[process.pid for process in multiprocessing.active_children()], flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
os.killpg(0, signal.SIGTERM)
num_photos += sum(len(batch.rows) for batch in batches)
print("photos", num_photos, len(manifest), flush=True)
"""


@pytest.fixture
def start_script(synthetic_dataset, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    def start(then):
        command = [sys.executable, str(path), str(synthetic_dataset), then]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    return start


def test_a_signal_to_the_whole_group_reaches_neither_loaders_nor_server(start_script):
    with start_script("end") as script:
        lines = [line.split() for line in script.communicate(timeout=120)[0].splitlines()]
    assert script.returncode == 0
    assert [line[0] for line in lines] == ["begun", "loaders", "photos"]
    assert lines[2][1] == lines[2][2]


def test_loaders_and_server_end_with_a_process_that_is_killed(start_script):
    with start_script("wait") as script:
        script.stdout.readline()
        loaders = [int(pid) for pid in script.stdout.readline().split()[1:]]
        processes = [*loaders, read_parent(loaders[0])]
        script.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
