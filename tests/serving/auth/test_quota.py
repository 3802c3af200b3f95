import pytest

from serving.api.status import Refusal
from serving.auth.quota import PhotoQuota
from tests.support.clock import ManualClock


def test_a_quota_fills_up_again_and_never_beyond_its_burst():
    clock = ManualClock()
    quota = PhotoQuota(2.0, clock=clock)
    quota.consume("a", 10)
    with pytest.raises(Refusal) as caught:
        quota.consume("a", 4)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    clock.advance(2.0)
    quota.consume("a", 4)
    clock.advance(1000.0)
    quota.consume("a", 20)  # more than the burst, which is whole
    with pytest.raises(Refusal):
        quota.consume("a", 1)


def test_callers_whose_quota_is_whole_again_are_forgotten(monkeypatch):
    monkeypatch.setattr(PhotoQuota, "MAX_TRACKED_CALLERS", 3)
    clock = ManualClock()
    quota = PhotoQuota(2.0, clock=clock)
    for name in "abc":
        quota.consume(name, 10)
    clock.advance(3.0)
    quota.consume("d", 10)
    assert quota.num_tracked_callers == 4  # none is whole, so none may be forgotten
    with pytest.raises(Refusal):
        quota.consume("a", 10)
    clock.advance(2.0)
    quota.consume("e", 1)
    assert quota.num_tracked_callers == 2
    for name in "de":
        with pytest.raises(Refusal):
            quota.consume(name, 10)
