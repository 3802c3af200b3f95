import multiprocessing

import pytest

from serving.api.status import Refusal
from serving.auth.quota import PhotoQuota
from tests.support.clock import ManualClock


@pytest.fixture(params=[False, True], ids=["one process", "a shared file"])
def path(request, tmp_path):
    return tmp_path / "quotas" if request.param else None


def test_a_quota_fills_up_again_and_never_beyond_its_burst(path):
    clock = ManualClock()
    quota = PhotoQuota(2.0, path, clock=clock)
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


def test_callers_have_a_quota_each(path):
    quota = PhotoQuota(2.0, path, clock=ManualClock())
    for name in map(str, range(1000)):
        quota.consume(name, 10)
    for name in map(str, range(1000)):
        with pytest.raises(Refusal):
            quota.consume(name, 1)


def test_invented_names_replace_the_quietest_ones(monkeypatch):
    monkeypatch.setattr("serving.auth.quota.NUM_RECORDS", 16)  # as many as are searched
    clock = ManualClock(1.0)
    quota = PhotoQuota(2.0, clock=clock)
    for name in map(str, range(16)):
        clock.advance(0.01)
        quota.consume(name, 10)
    quota.consume("new", 10)
    with pytest.raises(Refusal):
        quota.consume("new", 1)
    with pytest.raises(Refusal):
        quota.consume("1", 10)
    quota.consume("0", 10)  # the quietest one was forgotten


def consume_many(path, count, results):
    quota = PhotoQuota(0.01, path)
    accepted = 0
    for _ in range(count):
        try:
            quota.consume("a", 1)
            accepted += 1
        except Refusal:
            pass
    results.put(accepted)
    quota.close()


def test_processes_share_a_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(PhotoQuota, "BURST_S", 50_000.0)  # 500 photos at once
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=consume_many, args=(tmp_path / "q", 300, results)) for _ in range(4)]
    for process in processes:
        process.start()
    accepted = sum(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert 500 <= accepted <= 501
