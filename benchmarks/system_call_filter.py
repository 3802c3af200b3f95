"""Measure what the seccomp filter of `serving/triton/launcher.py` adds to a system call, in CPU time.

    python -m benchmarks.system_call_filter [--rounds 15]

A process makes system calls in a loop, started by the launcher and without it, in turns. The least time of all rounds
counts: other work on the machine only adds to it.
"""

import subprocess
import sys

import serving.triton.launcher
from benchmarks.common import create_parser, write_result

NUM_CALLS = 300_000
LOOP = f"""
import os, time
began_s = time.process_time()
for _ in range({NUM_CALLS}):
    os.getppid()
print(time.process_time() - began_s)
"""
_PROGRAM = (sys.executable, "-I", "-S", "-c", LOOP)
COMMANDS = {"plain": _PROGRAM, "filtered": (sys.executable, "-I", "-S", serving.triton.launcher.__file__, *_PROGRAM)}


def measure_ns(command: tuple[str, ...]) -> float:
    """Return the CPU time of one call. Raises SystemExit: the kernel takes no filter."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stderr:
        raise SystemExit(done.stderr)
    return 1e9 * float(done.stdout) / NUM_CALLS


def main() -> None:
    options = create_parser(__doc__, rounds=15).parse_args()
    rounds = [{name: measure_ns(command) for name, command in COMMANDS.items()} for _ in range(options.rounds)]
    least = {name: min(one[name] for one in rounds) for name in COMMANDS}
    metrics = {f"{name}_ns": ns for name, ns in least.items()}
    write_result("system_call_filter", {**metrics, "added_ns": least["filtered"] - least["plain"]}, {"rounds": rounds})


if __name__ == "__main__":
    main()
