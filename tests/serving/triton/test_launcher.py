"""What a program inherits from the launcher of Triton."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from serving.triton import launcher
from tests.support.serving_process import is_alive
from tests.support.waiting import wait_until

LAUNCH = [sys.executable, "-I", "-S", launcher.__file__]


def test_a_file_is_never_opened_to_others_and_other_modes_are_set(tmp_path):
    program = """
import os, subprocess, sys
for name, mode in (("shared", 0o644), ("private", 0o400)):
    fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o666)
    os.fchmod(fd, mode)
child = "import os; os.fchmod(os.open('child', os.O_CREAT), 0o666)"
assert subprocess.run([sys.executable, "-c", child]).returncode == 0
"""
    subprocess.run([*LAUNCH, sys.executable, "-c", program], cwd=tmp_path, check=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["private"] == 0o400
    assert modes["shared"] & 0o077 == modes["child"] & 0o077 == 0
    # Unchanged here: the filter is of the launched program alone.
    fd = os.open(tmp_path / "ours", os.O_CREAT | os.O_RDWR)
    os.fchmod(fd, 0o644)
    os.close(fd)
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o644


def test_the_program_ends_with_its_parent(tmp_path):
    parent = f"""
import subprocess, time
child = subprocess.Popen({[*LAUNCH, "/bin/sleep", "60"]!r})
while b"sleep" not in open(f"/proc/{{child.pid}}/comm", "rb").read():
    time.sleep(0.01)
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/bin/sleep\x0060\x00"
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the program ends")
