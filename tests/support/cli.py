"""The console script in a process of its own, as a user runs it."""

import subprocess
import sys

from tests.conftest import ROOT


def run_cli(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "listing_vision", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
