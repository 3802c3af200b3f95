import asyncio

import pytest

from serving.inference.shared_check import SharedCheck
from tests.support.clock import ManualClock
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable

TIMEOUT_S = 5.0


class Check:
    """Counts how often it is run; ends when it is let, with an error if it is given one."""

    def __init__(self, error=None, *, may_end=True):
        self.num_runs, self.error = 0, error
        self.may_end = asyncio.Event()
        if may_end:
            self.may_end.set()

    async def __call__(self):
        self.num_runs += 1
        await self.may_end.wait()
        if self.error:
            raise self.error


@pytest.fixture
def clock():
    return ManualClock(100.0)


@pytest.fixture
def processes(tmp_path, clock):
    """The views of two processes."""
    checks = [SharedCheck(tmp_path / "model.check", timeout_s=TIMEOUT_S, clock=clock) for _ in range(2)]
    yield checks
    for check in checks:
        check.close()


def test_what_has_passed_in_another_process_is_not_checked_again_until_it_is_old(processes, clock):
    async def check():
        first, second = Check(), Check()
        assert await processes[0].run(first, max_age_s=1) == 0
        clock.advance(0.75)
        assert await processes[1].run(second, max_age_s=1) == 0.75
        clock.advance(0.25)
        assert await processes[1].run(second, max_age_s=1) == 0
        assert (first.num_runs, second.num_runs) == (1, 1)

    asyncio.run(check())


@pytest.mark.parametrize("error", [None, EngineBroken("wrong")])
def test_a_process_that_waits_learns_the_end(processes, error):
    async def check():
        first, second = Check(error, may_end=False), Check()
        runs = [
            asyncio.create_task(process.run(one, max_age_s=1))
            for process, one in zip(processes, (first, second), strict=True)
        ]
        await asyncio.sleep(0)
        first.may_end.set()
        ends = await asyncio.gather(*runs, return_exceptions=True)
        assert (first.num_runs, second.num_runs) == (1, 0)
        assert [type(end) for end in ends] == ([EngineBroken, EngineUnavailable] if error else [float, float])

    asyncio.run(check())


def test_a_failure_is_no_result_for_who_comes_later(processes, clock):
    async def check():
        with pytest.raises(EngineBroken):
            await processes[0].run(Check(EngineBroken("wrong")), max_age_s=1)
        clock.advance(0.01)
        second = Check()
        assert await processes[1].run(second, max_age_s=1) == 0
        assert second.num_runs == 1

    asyncio.run(check())


@pytest.mark.parametrize("ending", ["busy", "ended"])
def test_a_process_that_waits_checks_itself_where_there_is_no_result(processes, ending):
    async def check():
        first, second = Check(EngineBusy("full"), may_end=False), Check()
        runs = [
            asyncio.create_task(process.run(one, max_age_s=1))
            for process, one in zip(processes, (first, second), strict=True)
        ]
        await asyncio.sleep(0)
        assert second.num_runs == 0
        if ending == "busy":
            first.may_end.set()
        else:
            runs[0].cancel()
        assert await runs[1] == 0
        assert second.num_runs == 1
        await asyncio.gather(runs[0], return_exceptions=True)

    asyncio.run(check())


def test_a_frozen_process_is_waited_for_once(processes, clock):
    async def check():
        frozen = asyncio.create_task(processes[0].run(Check(may_end=False), max_age_s=1))
        await asyncio.sleep(0)
        second = Check()
        waiting = asyncio.create_task(processes[1].run(second, max_age_s=1))
        await asyncio.sleep(0)
        assert second.num_runs == 0
        clock.advance(TIMEOUT_S + 0.1)
        assert await waiting == 0
        assert await processes[1].run(second, max_age_s=1) == 0
        assert second.num_runs == 2
        frozen.cancel()
        await asyncio.gather(frozen, return_exceptions=True)

    asyncio.run(check())
