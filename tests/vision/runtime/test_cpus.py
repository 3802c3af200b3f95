import os

import pytest

from vision.runtime.cpus import count_usable_cores, set_thread_policy

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000\n", ALLOWED),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("100001 100000\n", min(2, ALLOWED)),
        ("6400000 100000\n", min(64, ALLOWED)),
        ("", ALLOWED),
    ],
)
def test_a_quota_counts_where_it_is_less_than_the_machine(tmp_path, cpu_max, cores):
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert count_usable_cores(tmp_path / "cpu.max") == cores


def test_without_control_groups_it_is_what_the_process_may_run_on(tmp_path):
    assert count_usable_cores(tmp_path / "cpu.max") == ALLOWED


@pytest.fixture
def openmp(monkeypatch):
    """Names of OpenMP's variables, not set."""
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    return names


def read_threads(names):
    return [os.environ.get(name) for name in names]


def test_threads_wait_without_spinning_and_keep_to_the_quota(openmp, monkeypatch):
    monkeypatch.setattr("vision.runtime.cpus.count_usable_cores", lambda: ALLOWED)
    set_thread_policy()
    assert read_threads(openmp) == ["PASSIVE", None]
    monkeypatch.setattr("vision.runtime.cpus.count_usable_cores", lambda: ALLOWED - 1)
    set_thread_policy()
    assert read_threads(openmp) == ["PASSIVE", str(ALLOWED - 1)]


def test_what_the_user_has_set_is_kept(openmp, monkeypatch):
    monkeypatch.setattr("vision.runtime.cpus.count_usable_cores", lambda: ALLOWED - 1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    set_thread_policy()
    assert read_threads(openmp) == ["ACTIVE", "7"]
