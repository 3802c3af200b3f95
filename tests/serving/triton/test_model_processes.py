"""When a model is reloaded, and which of its processes are ended."""

import itertools

from serving.triton.model_processes import MAX_LOAD_S, RECENT_S, RELOAD_BACKOFF_S, ModelProcesses, RecoveryBackoff
from tests.support.clock import ManualClock


def create(living):
    clock = ManualClock()
    processes = ModelProcesses(clock=clock)
    processes.record(frozenset(living))
    return clock, processes


OLD, NEW = frozenset({1, 2, 3, 4}), frozenset({5, 6, 7, 8})


def test_a_complete_new_set_replaces_the_old_one():
    _, processes = create(OLD)
    left = OLD - {1}
    assert processes.is_complete(OLD)
    assert not processes.is_complete(left)
    assert processes.may_reload(left)
    processes.begin_reload(left)
    assert not processes.may_reload(left)
    assert processes.observe(left | {5, 6, 7}) == frozenset()
    assert processes.observe(left | NEW) == left
    assert processes.is_complete(left | NEW)
    assert processes.is_complete(NEW)


def test_a_load_that_never_ends_is_taken_as_failed_and_what_it_started_is_ended():
    clock, processes = create(OLD)
    left = OLD - {1}
    processes.begin_reload(left)
    clock.now_s = MAX_LOAD_S - 1
    assert processes.observe(left | {5}) == frozenset()
    assert not processes.may_reload(left | {5})
    clock.now_s = MAX_LOAD_S
    assert processes.observe(left | {5}) == {5}
    assert not processes.is_complete(left | {5})
    assert processes.may_reload(left | {5})


def test_there_are_never_more_than_two_sets_and_no_endless_reloads():
    """A machine on which every load fails after it has started some processes, and which ends them slowly."""
    clock, processes = create(OLD)
    living, num_reloads, pid, largest = OLD - {1}, 0, 100, 0
    to_end_at_s = {}
    while clock.now_s < 660:
        clock.now_s += 1
        living -= {pid for pid, end_s in to_end_at_s.items() if end_s <= clock.now_s}
        to_end_at_s |= dict.fromkeys(processes.observe(living), clock.now_s + 15)
        if not processes.is_complete(living) and processes.may_reload(living):
            processes.begin_reload(living)
            living |= {pid, pid + 1}
            pid, num_reloads = pid + 2, num_reloads + 1
        largest = max(largest, len(living))
    assert num_reloads <= 6
    assert largest <= 2 * len(OLD)


def test_attempts_are_further_apart_the_more_there_were_lately():
    clock = ManualClock()
    backoff = RecoveryBackoff(RELOAD_BACKOFF_S, clock=clock)
    attempts_s = []
    while clock.now_s < 400:
        if backoff.is_due():
            backoff.record_attempt()
            attempts_s.append(clock.now_s)
        clock.now_s += 1
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(attempts_s)]
    assert gaps_s == [1, 10, 30, 60, 120, 120]
    clock.now_s += RECENT_S
    assert backoff.is_due()
    backoff.record_attempt()
    clock.now_s += 10
    assert backoff.is_due()
