import os

import pytest

from vision.runtime.cpus import count_usable_cores

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
