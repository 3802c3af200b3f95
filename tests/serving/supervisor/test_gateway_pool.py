"""Gateway processes that are killed, freeze or are replaced while clients call: real signals, real processes."""

import os
import signal

from tests.support.serving_process import Callers
from tests.support.waiting import wait_until


def test_two_processes_answer_on_one_port(shared):
    assert len(shared.list_gateways()) == 2
    with Callers(shared.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []


def test_a_killed_process_is_replaced(shared):
    before, num_started = shared.list_gateways(), shared.num_started_gateways
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(shared.list_gateways() - {victim}) == 2, "two processes again")
    wait_until(lambda: shared.num_started_gateways == num_started + 1, "the new one serves")
    with Callers(shared.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []


def test_a_frozen_process_is_replaced(shared):
    before, num_started = shared.list_gateways(), shared.num_started_gateways
    victim = min(before)
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: f"gateway process {victim} does not answer and is killed" in shared.log, "it is killed")
    wait_until(lambda: shared.num_started_gateways == num_started + 1, "the new one serves")
    assert victim not in shared.list_gateways()
    with Callers(shared.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []


def test_processes_are_replaced_one_by_one_without_a_failed_call(shared):
    before = shared.list_gateways()
    with Callers(shared.address) as callers:
        wait_until(lambda: callers.num_answered >= 5, "answers before")
        shared.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "all 2 gateway processes were replaced" in shared.log, "replaced")
        num_answered = callers.num_answered
        wait_until(lambda: callers.num_answered >= num_answered + 5, "answers after")
    assert callers.failures == []
    assert shared.list_gateways().isdisjoint(before)


def test_the_number_of_processes_holds_if_one_exits_while_all_are_replaced(served):
    before = served.list_gateways()
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(served.list_gateways()) == 3, "a new one starts")
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: "all 2 gateway processes were replaced" in served.log, "replaced")
    wait_until(lambda: len(served.list_gateways()) == 2, "two of them")
    assert served.list_gateways().isdisjoint(before)
    started = served.num_started_gateways
    # The next exit starts exactly one process: no other was about to start.
    os.kill(min(served.list_gateways()), signal.SIGKILL)
    wait_until(lambda: served.num_started_gateways == started + 1, "one more")
    assert len(served.list_gateways()) == 2
