import asyncio

from serving.rollout.circuit_breaker import FAILURE_THRESHOLD, CircuitBreaker


def broken() -> CircuitBreaker:
    breaker = CircuitBreaker()
    for _ in range(FAILURE_THRESHOLD):
        breaker.record_failure()
    return breaker


def test_it_opens_after_failures_in_a_row():
    breaker = CircuitBreaker()
    for _ in range(FAILURE_THRESHOLD - 1):
        breaker.record_failure()
    assert not breaker.is_open
    breaker.record_failure()
    assert breaker.is_open


def test_an_answer_in_between_begins_the_count_anew():
    breaker = CircuitBreaker()
    for _ in range(3 * FAILURE_THRESHOLD):
        breaker.record_failure()
        breaker.record_success()
    assert not breaker.is_open


def test_a_callers_answer_does_not_close_it_only_the_golden_photos_do():
    breaker = broken()
    breaker.record_success()
    assert breaker.is_open
    breaker.close()
    assert not breaker.is_open
    breaker.record_failure()
    assert not breaker.is_open


def test_whoever_waits_for_it_to_open_is_woken():
    async def wait():
        breaker = CircuitBreaker()
        waiting = asyncio.create_task(breaker.opened.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        breaker.open()
        await asyncio.wait_for(waiting, 5)
        breaker.close()
        assert not breaker.opened.is_set()

    asyncio.run(wait())
