"""What a measured stage leaves in the metric and in the response's timings."""

import asyncio

import pytest

from serving.observability.metrics import STAGE_SECONDS
from serving.observability.stage_timer import collect_stage_timings, measure_stage, suppress_metrics


def count_observations(stage: str) -> float:
    samples = STAGE_SECONDS.collect()[0].samples
    return sum(s.value for s in samples if s.name.endswith("_count") and s.labels == {"stage": stage})


def test_stages_are_collected_in_the_order_in_which_they_start_and_add_up():
    with collect_stage_timings() as timings, measure_stage("outer"):
        with measure_stage("inner"):
            pass
        first = timings["inner"]
        with measure_stage("inner"):
            pass
        assert timings["outer"] == 0.0  # not finished
    assert list(timings) == ["outer", "inner"]
    assert timings["outer"] >= timings["inner"] > first


def test_a_stage_that_fails_is_measured_too():
    before = count_observations("failing")
    with collect_stage_timings() as timings, pytest.raises(ZeroDivisionError), measure_stage("failing"):
        raise ZeroDivisionError
    assert timings["failing"] > 0
    assert count_observations("failing") == before + 1


def test_suppressed_stages_are_collected_but_in_no_metric():
    before = count_observations("shadow")
    with collect_stage_timings() as timings, suppress_metrics(), measure_stage("shadow"):
        pass
    assert "shadow" in timings
    assert count_observations("shadow") == before


def test_each_task_collects_its_own():
    async def collect(stage):
        with collect_stage_timings() as timings, measure_stage(stage):
            await asyncio.sleep(0)
        return list(timings)

    async def run():
        return await asyncio.gather(collect("a"), collect("b"))

    assert asyncio.run(run()) == [["a"], ["b"]]
