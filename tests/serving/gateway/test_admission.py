import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.status import Refusal
from serving.gateway.admission import (
    ESTIMATE_EXPIRES_AFTER_S,
    MAX_DEADLINE_SHARE,
    MAX_WAIT_S,
    Admission,
    ThroughputEstimator,
)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def create_busy_estimator(clock, *, photos_per_s: float, seconds: float = 4.0) -> ThroughputEstimator:
    """A rate learned from so many seconds of a full service."""
    rate = ThroughputEstimator(saturation_photos=4, clock=clock)
    for _ in range(int(seconds * photos_per_s)):
        rate.record_completion(1, 10)
        clock.now_s += 1 / photos_per_s
    return rate


def test_the_rate_is_that_of_photos_that_leave_while_it_is_busy():
    assert create_busy_estimator(Clock(), photos_per_s=50).photos_per_s == pytest.approx(50, rel=0.02)


def test_idle_time_says_nothing_about_the_rate():
    clock = Clock()
    rate = create_busy_estimator(clock, photos_per_s=50)
    rate.record_completion(1, 0)
    clock.now_s += ESTIMATE_EXPIRES_AFTER_S - 1
    rate.record_completion(1, 1)
    assert rate.photos_per_s == pytest.approx(50, rel=0.05)


def test_a_rate_of_long_ago_is_forgotten_and_measured_anew():
    # After a stall: it would let in three photos of 5 s, where a machine is busy with four.
    clock = Clock()
    rate = create_busy_estimator(clock, photos_per_s=1)
    rate.record_completion(1, 0)
    assert rate.photos_per_s == pytest.approx(1, rel=0.05)
    clock.now_s += ESTIMATE_EXPIRES_AFTER_S + 1
    assert rate.photos_per_s is None
    for _ in range(30):
        rate.record_completion(1, 10)
        clock.now_s += 0.02
    assert rate.photos_per_s == pytest.approx(50, rel=0.05)


def test_a_rate_is_remembered_while_nothing_leaves_a_busy_machine():
    clock = Clock()
    rate = create_busy_estimator(clock, photos_per_s=50)
    clock.now_s += 10 * ESTIMATE_EXPIRES_AFTER_S
    assert rate.photos_per_s == pytest.approx(50, rel=0.05)


def test_no_rate_is_said_before_it_was_busy():
    rate = ThroughputEstimator(saturation_photos=4, clock=Clock())
    rate.record_completion(1, 3)
    assert rate.photos_per_s is None


def test_the_rate_follows_a_service_that_becomes_slower():
    clock = Clock()
    rate = create_busy_estimator(clock, photos_per_s=100)
    for _ in range(100):
        rate.record_completion(1, 10)
        clock.now_s += 0.1
    assert rate.photos_per_s == pytest.approx(10, rel=0.1)


def admission(**limits) -> Admission:
    return Admission(ThroughputEstimator(saturation_photos=4, clock=Clock()), **limits)


@pytest.mark.parametrize(
    ("limits", "first", "second", "said"),
    [
        ({"max_photos": 3}, (2, 10), (2, 10), "2 photos are in flight of at most 3"),
        ({"max_bytes": 3 << 20}, (1, 2 << 20), (1, 2 << 20), "2 MiB of photos are in flight of at most 3"),
    ],
)
def test_what_is_too_much_is_refused_with_a_delay_and_what_has_left_makes_room(limits, first, second, said):
    door = admission(**limits)
    with door.admit(*first, deadline_s=1):
        with pytest.raises(Refusal, match=said) as caught, door.admit(*second, deadline_s=1):
            pass
        assert caught.value.reason == "TOO_BUSY"
        assert caught.value.retry_after_s > 0
    with door.admit(*second, deadline_s=1):
        assert (door.num_photos, door.num_bytes) == second
    assert (door.num_photos, door.num_bytes) == (0, 0)


@pytest.mark.parametrize(("limits", "listing"), [({"max_photos": 3}, (3, 1)), ({"max_bytes": 8}, (1, 8))])
def test_the_limits_are_exact(limits, listing):
    door = admission(**limits)
    with door.admit(*listing, deadline_s=1):
        assert (door.num_photos, door.num_bytes) == listing


def test_a_failed_call_leaves_too():
    door = admission()
    with pytest.raises(ZeroDivisionError), door.admit(2, 10, deadline_s=1):
        raise ZeroDivisionError
    assert (door.num_photos, door.num_bytes) == (0, 0)


def test_a_call_that_would_be_answered_too_late_is_refused_at_once():
    door = Admission(create_busy_estimator(Clock(), photos_per_s=10))
    with door.admit(10, 10, deadline_s=60):
        with (
            pytest.raises(Refusal, match=r"busy: needs 1\.1\d s of the 1\.00 s left"),
            door.admit(1, 1, deadline_s=1),
        ):
            pass
        with door.admit(1, 1, deadline_s=1.2 / MAX_DEADLINE_SHARE):
            pass


def test_nobody_waits_longer_than_a_person_would():
    door = Admission(create_busy_estimator(Clock(), photos_per_s=10))
    enough = int(10 * MAX_WAIT_S * MAX_DEADLINE_SHARE) + 1
    with door.admit(enough, 10, deadline_s=600), pytest.raises(Refusal), door.admit(1, 1, deadline_s=600):
        pass


def test_an_empty_service_takes_whatever_comes():
    door = Admission(create_busy_estimator(Clock(), photos_per_s=1))
    with door.admit(20, 10, deadline_s=0.1):
        assert door.num_photos == 20


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 100)), max_size=60))
def test_no_more_is_ever_in_flight_than_allowed(listings):
    door, held = admission(max_photos=30, max_bytes=200), []
    for num_photos, num_bytes in listings:
        entered = door.admit(num_photos, num_bytes, deadline_s=1)
        try:
            entered.__enter__()
        except Refusal:
            if held:
                held.pop(0).__exit__(None, None, None)
        else:
            held.append(entered)
        assert door.num_photos <= 30
        assert door.num_bytes <= 200
    for entered in held:
        entered.__exit__(None, None, None)
    assert (door.num_photos, door.num_bytes) == (0, 0)
