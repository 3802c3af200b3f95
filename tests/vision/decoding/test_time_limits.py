import os
import subprocess
import sys
import time

import pytest

from tests.support.clock import ManualClock
from vision.decoding.time_limits import YIELDING_NICENESS, YIELDS_AFTER_CPU_S, PhotoTimer, TimeLimits, read_cpu_s
from vision.errors import PhotoServiceBusy, PhotoTimedOut

LIMITS = TimeLimits(cpu_s=2, wall_s=10)


def create_timer(clock, cpu, **options) -> PhotoTimer:
    return PhotoTimer(1, LIMITS, clock=clock, read_cpu_s=lambda pid: cpu.now_s, **options)


def test_cpu_time_is_the_photos_and_time_on_the_clock_the_machines():
    clock, cpu = ManualClock(100), ManualClock(7)
    timer = create_timer(clock, cpu)
    clock.advance(9.9)
    cpu.advance(1.9)
    assert timer.check() is None
    clock.advance(0.1)
    assert isinstance(timer.check(), PhotoServiceBusy)
    cpu.advance(0.1)
    assert isinstance(timer.check(), PhotoTimedOut)


def test_the_next_check_is_due_when_a_limit_may_be_reached():
    clock, cpu = ManualClock(), ManualClock()
    timer = create_timer(clock, cpu)
    assert timer.next_check_s == 2
    cpu.advance(0.5)
    assert timer.next_check_s == 1.5
    clock.advance(9.5)
    assert timer.next_check_s == 0.5
    clock.advance(1)
    assert 0 < timer.next_check_s < 0.1


def test_an_earlier_deadline_applies():
    clock, cpu = ManualClock(), ManualClock()
    timer = create_timer(clock, cpu, deadline_s=3)
    clock.advance(3)
    assert isinstance(timer.check(), PhotoServiceBusy)


def test_the_cpu_time_of_a_process_is_the_kernels():
    before = time.process_time()
    assert before <= read_cpu_s(os.getpid()) <= time.process_time()


def test_a_process_that_has_ended_has_no_cpu_time():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(OSError, match="Invalid argument"):
        read_cpu_s(process.pid)


def test_a_worker_yields_once_its_photo_takes_long():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        cpu = ManualClock()
        timers = [
            PhotoTimer(process.pid, LIMITS, read_cpu_s=lambda pid: cpu.now_s, yields=yields) for yields in (False, True)
        ]
        niceness = os.getpriority(os.PRIO_PROCESS, process.pid)
        assert [timer.next_check_s for timer in timers] == [2, YIELDS_AFTER_CPU_S]
        for num_yielding, seconds in ((0, YIELDS_AFTER_CPU_S / 2), (1, YIELDS_AFTER_CPU_S / 2)):
            cpu.advance(seconds)
            assert [timer.check() for timer in timers] == [None, None]
            assert [timer.has_yielded for timer in timers] == [False, bool(num_yielding)]
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == YIELDING_NICENESS > niceness
        assert timers[1].next_check_s == 2 - YIELDS_AFTER_CPU_S
