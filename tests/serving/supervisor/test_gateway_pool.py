"""Gateway processes that are killed, freeze or are replaced while clients call: real signals, real processes."""

import os
import signal

from tests.support.serving_process import Callers
from tests.support.waiting import wait_until


def test_two_processes_answer_on_one_port(served):
    assert len(served.list_gateways()) == 2
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []


def test_a_killed_process_is_replaced_and_the_other_goes_on(served):
    before = served.list_gateways()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(served.list_gateways() - {victim}) == 2, "two processes again")
    wait_until(lambda: served.num_started_gateways == 3, "the new one serves")
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []
    assert served.stop() == 0


def test_a_silent_process_is_replaced_before_its_connections_wait_for_ever(served):
    before = served.list_gateways()
    victim = min(before)
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: f"gateway process {victim} does not answer and is killed" in served.log, "it is killed")
    wait_until(lambda: served.num_started_gateways == 3, "the new one serves")
    assert victim not in served.list_gateways()
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 10, "ten answers")
    assert callers.failures == []
    assert served.stop() == 0


def test_processes_are_replaced_one_by_one_without_a_failed_call(served):
    before = served.list_gateways()
    with Callers(served.address) as callers:
        wait_until(lambda: callers.num_answered >= 5, "answers before")
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "all 2 gateway processes were replaced" in served.log, "replaced")
        asked = callers.num_answered
        wait_until(lambda: callers.num_answered >= asked + 5, "answers after")
    assert callers.failures == []
    assert served.list_gateways().isdisjoint(before)


def test_as_many_as_are_wanted_are_left_where_one_dies_while_all_are_replaced(served):
    before = served.list_gateways()
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(served.list_gateways()) == 3, "a new one comes")
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: "all 2 gateway processes were replaced" in served.log, "replaced")
    wait_until(lambda: len(served.list_gateways()) == 2, "two of them")
    assert served.list_gateways().isdisjoint(before)
    started = served.num_started_gateways
    # Another death is replaced by one, so that nobody else was on the way.
    os.kill(min(served.list_gateways()), signal.SIGKILL)
    wait_until(lambda: served.num_started_gateways == started + 1, "one more")
    assert len(served.list_gateways()) == 2
