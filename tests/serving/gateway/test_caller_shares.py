"""Capacity is shared by callers: none takes all of it, and none waits for all photos of another."""

import contextlib
from contextlib import ExitStack

import pytest

from serving.api.status import Refusal
from serving.gateway.admission import Admission, ThroughputEstimator
from serving.gateway.caller_shares import ACTIVE_S, SLOW_S, CallerShares
from tests.support.clock import ManualClock

MAX = {"max_photos": 80, "max_bytes": 8000}


def test_a_caller_alone_leaves_room_for_the_next_one():
    shares = CallerShares(clock=ManualClock())
    with shares.hold("a", 60, 0):
        assert not shares.exceeds_share("a", 10, 0, **MAX)
        assert shares.exceeds_share("a", 11, 0, **MAX)
        assert not shares.exceeds_share("b", 20, 0, **MAX)


def test_while_others_are_active_a_caller_has_half():
    clock = ManualClock()
    shares = CallerShares(clock=clock)
    with shares.hold("b", 1, 10):
        pass
    with shares.hold("a", 30, 3000):
        assert not shares.exceeds_share("a", 10, 0, **MAX)
        assert shares.exceeds_share("a", 11, 0, **MAX)
        assert shares.exceeds_share("a", 1, 1001, **MAX)
        clock.advance(ACTIVE_S + 1)
        assert not shares.exceeds_share("a", 11, 0, **MAX)


def test_a_caller_whose_listings_are_not_answered_in_time_may_have_fewer_in_flight():
    clock = ManualClock()
    shares = CallerShares(clock=clock)

    def expire(*, after_s):
        with contextlib.suppress(TimeoutError), shares.hold("slow", 10, 0):
            clock.advance(after_s)
            raise TimeoutError

    with shares.hold("other", 1, 0), shares.hold("slow", 10, 0):
        expire(after_s=SLOW_S - 0.1)  # its deadline was short
        assert not shares.exceeds_share("slow", 30, 0, **MAX)
        expire(after_s=SLOW_S)  # of 20 photos in flight
        assert shares.exceeds_share("slow", 1, 0, **MAX)
        for _ in range(3):
            with shares.hold("slow", 1, 0):
                pass
        assert not shares.exceeds_share("slow", 3, 0, **MAX)
        assert shares.exceeds_share("slow", 4, 0, **MAX)
        expire(after_s=SLOW_S)
        assert shares.exceeds_share("slow", 1, 0, **MAX)
    assert not shares.exceeds_share("slow", 10, 0, **MAX)  # one listing, whatever has happened
    clock.advance(ACTIVE_S + 1)
    with shares.hold("slow", 10, 0):
        assert not shares.exceeds_share("slow", 30, 0, **MAX)  # the other caller is gone


def test_listings_that_are_being_received_count_before_another_one_is():
    shares = CallerShares()
    shares.record_size("a", 20, 2000)
    shares.record_size("a", 20, 2000)
    with shares.hold("b", 1, 10), shares.expect("a"), shares.expect("a"):
        assert shares.will_exceed_share("a", **MAX)
        assert not shares.exceeds_share("a", 20, 2000, **MAX)  # each of them is admitted
        assert not shares.will_exceed_share("b", **MAX)
    assert not shares.will_exceed_share("a", **MAX)


def test_a_caller_with_nothing_in_flight_is_within_its_share_whatever_it_sends():
    assert not CallerShares().exceeds_share("a", 1000, 10**9, **MAX)


def test_a_caller_waits_for_its_own_photos_and_as_many_of_others():
    shares = CallerShares()
    with shares.hold("heavy", 100, 0):
        assert shares.count_before("light", 100) == 1
        with shares.hold("light", 2, 0):
            assert shares.count_before("light", 102) == 5
            assert shares.count_before("heavy", 102) == 102


def test_admission_refuses_the_caller_who_has_its_share_and_admits_another():
    admission = Admission(ThroughputEstimator(saturation_photos=4), max_photos=80)
    with ExitStack() as held:
        for _ in range(7):
            held.enter_context(admission.admit(10, 0, deadline_s=1, caller="a"))
        with pytest.raises(Refusal, match="its share"), admission.admit(10, 0, deadline_s=1, caller="a"):
            pass
        with admission.admit(10, 0, deadline_s=1, caller="b"):
            pass


def test_a_caller_of_large_listings_is_refused_before_the_next_one_is_read():
    admission = Admission(ThroughputEstimator(saturation_photos=4), max_photos=80, max_bytes=1000)
    with admission.admit(5, 400, deadline_s=1, caller="b"), admission.admit(5, 400, deadline_s=1, caller="a"):
        with pytest.raises(Refusal, match="its share"):
            admission.reject_early(deadline_s=1, caller="a")
        admission.reject_early(deadline_s=1, caller="c")
