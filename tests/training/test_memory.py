import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import resource, sys
import torch
from training.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(30):
    torch.zeros(16 << 20)
before = faults()
for _ in range(20):
    torch.zeros(16 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_memory_used_again_costs_few_page_faults():
    def count(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, cwd=ROOT)
        return int(done.stdout)

    assert count("keep") < count("as it is") / 2
