"""Capacity is shared by callers: none takes all of it, and none waits for all photos of another."""

from contextlib import ExitStack

import pytest

from serving.api.status import Refusal
from serving.gateway.admission import Admission, ThroughputEstimator
from serving.gateway.caller_shares import ACTIVE_S, CallerShares
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
