"""A child whose parent is killed gets the signal that it asked for."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vision.runtime.lifetime import count_free_descriptors

# os.write: a signal handler must not use a buffer that the program may be writing to.
CHILD = """
import os, signal
from vision.runtime.lifetime import die_with_parent
signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b"parent exited\\n"), os._exit(0)))
die_with_parent(signal.SIGUSR1)
print("ready", flush=True)
signal.pause()
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_killed_parent_is_noticed():
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == "parent exited\n"  # until the child has closed it too


def test_a_parent_that_exited_before_is_noticed_where_its_pid_is_known():
    # A process that is no longer the parent, like one that has exited; the kernel would never send the signal.
    child = CHILD.replace("die_with_parent(signal.SIGUSR1)", "die_with_parent(signal.SIGUSR1, parent=os.getpid())")
    done = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout == "parent exited\n"


def test_a_process_may_open_more_files_than_connections_come():
    code = (
        "import resource; from vision.runtime.lifetime import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "raise_descriptor_limit()\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE); assert soft == min(hard, 65_536), (soft, hard)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_free_descriptors_are_what_is_left_of_the_limit():
    before = count_free_descriptors()
    with open("/dev/null"), open("/dev/null"):
        assert count_free_descriptors() == before - 2


COUNT_PAGE_FAULTS = """
import resource, sys
count, size_mib = int(sys.argv[1]), int(sys.argv[2])
def use_memory():
    buffers = [bytearray(size_mib << 20) for _ in range(count)]
use_memory(), use_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use_memory()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
THP_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def count_page_faults_of_child(*, count: int, size_mib: int) -> int:
    code = (
        "import subprocess, sys; from vision.runtime.lifetime import keep_freed_memory_in_children\n"
        "keep_freed_memory_in_children(); subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)"
    )
    command = [sys.executable, "-c", code, COUNT_PAGE_FAULTS, str(count), str(size_mib)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_children_use_freed_memory_again_without_asking_the_kernel():
    assert count_page_faults_of_child(count=8, size_mib=12) < 2_000  # of 24,576 pages that it uses


@pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.35") or not THP_MODE.exists() or "[never]" in THP_MODE.read_text(),
    reason="needs glibc 2.35 and a kernel with transparent huge pages",
)
def test_large_buffers_of_children_lie_on_huge_pages():
    assert count_page_faults_of_child(count=1, size_mib=96) < 16_000  # of 24,576 small pages, mapped each time


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_memory_used_again_costs_few_page_faults():
    keep = "from vision.runtime.lifetime import keep_freed_memory; keep_freed_memory()\n"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def count(code: str) -> int:
        command = [sys.executable, "-c", code, "2", "64"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=variables)
        return int(done.stdout)

    assert count(keep + COUNT_PAGE_FAULTS) < count(COUNT_PAGE_FAULTS) / 2


MEASURE_KEPT_MEMORY = """
import resource, sys
from vision.runtime.lifetime import keep_freed_memory

def count_resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

keep_freed_memory(int(sys.argv[1]) << 20)
before = count_resident_mib()
buffers = [bytearray(b"x") * (60 << 20) for _ in range(2)]
del buffers
print(count_resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
@pytest.mark.parametrize(
    ("max_mib", "environment", "keeps"),
    [(256, {}, True), (16, {}, False), (256, {"MALLOC_MMAP_MAX_": "65536"}, False)],
)
def test_a_process_keeps_freed_memory_up_to_its_limit(max_mib, environment, keeps):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", MEASURE_KEPT_MEMORY, str(max_mib)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env={**variables, **environment}
    )
    assert (int(done.stdout) > 60) == keeps  # of 120 MiB
