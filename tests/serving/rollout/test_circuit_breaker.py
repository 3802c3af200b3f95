import asyncio

from serving.rollout.circuit_breaker import FAILURES_UNTIL_OPEN, Breaker


def broken() -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_UNTIL_OPEN):
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row():
    breaker = Breaker()
    for _ in range(FAILURES_UNTIL_OPEN - 1):
        breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open


def test_an_answer_in_between_begins_the_count_anew():
    breaker = Breaker()
    for _ in range(3 * FAILURES_UNTIL_OPEN):
        breaker.failed()
        breaker.succeeded()
    assert not breaker.is_open


def test_a_callers_answer_does_not_close_it_only_the_golden_photos_do():
    breaker = broken()
    breaker.succeeded()
    assert breaker.is_open
    breaker.close()
    assert not breaker.is_open
    breaker.failed()
    assert not breaker.is_open


def test_whoever_waits_for_it_to_open_is_woken():
    async def wait():
        breaker = Breaker()
        waiting = asyncio.create_task(breaker.opened.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        breaker.open()
        await asyncio.wait_for(waiting, 5)
        breaker.close()
        assert not breaker.opened.is_set()

    asyncio.run(wait())
