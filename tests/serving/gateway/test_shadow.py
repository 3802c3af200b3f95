import asyncio

import pytest

from serving.gateway import shadow as shadows
from serving.rollout.traffic_split import SHADOW
from tests.support.gateway import (
    PHOTO,
    BusyAdmission,
    FailingEngine,
    create_share,
    create_split,
    get_release,
    read_metric,
    run_split,
)
from tests.support.outcomes import read_table
from tests.support.waiting import async_wait_until
from vision.errors import EngineBusy, EngineUnavailable

SATURATION_PHOTOS = 4


def run_with_shadow(bundle, other_bundle, folder, work, *, share=1.0, **options):
    """Runs work(server, client) with the other bundle as a shadow, until none of its listings waits."""

    async def run():
        traffic_split = create_split(bundle, other_bundle, shadow=create_share(other_bundle, share))
        admission = BusyAdmission(is_busy=False)
        async with run_split(traffic_split, admission=admission, outcomes=str(folder), **options) as (server, client):
            found = await work(server, client)
            await async_wait_until(lambda: not server.gateway.shadow_traffic.is_working)
            return found

    return asyncio.run(run())


RESULTS = ("same", "different", "failed", "dropped")


def read_shadow_counts(bundle):
    return {result: read_metric("shadows_total", result=result, model_release=bundle.release) for result in RESULTS}


def count_added(bundle, before):
    return {result: num - before[result] for result, num in read_shadow_counts(bundle).items() if num != before[result]}


def test_a_shadow_answers_for_the_record_only(bundle, other_bundle, tmp_path):
    names = [f"m{n}" for n in range(14)]  # the share of fewer may be empty for some labels

    async def ask(server, client):
        return [await client.classify([PHOTO], listing_id=name) for name in [*names, ""]]

    before, stages = read_shadow_counts(other_bundle), read_metric("stage_seconds_sum", stage="decision")
    answers = run_with_shadow(bundle, other_bundle, tmp_path, ask, share=0.5)
    assert {answer.model.version for answer in answers} == {bundle.info.model_version}
    share = create_share(other_bundle, 0.5)
    expected = {name for name in names if share.contains(name, SHADOW)}
    rows = read_table(tmp_path, "shadows")
    assert {row["listing_id"] for row in rows} == expected != set()
    assert {row["model_version"] for row in rows} == {other_bundle.info.model_version}
    assert {row["answered_model_version"] for row in rows} == {bundle.info.model_version}
    # One photo, so one verdict for all.
    assert sum(count_added(other_bundle, before).values()) == len(expected)
    assert set(count_added(other_bundle, before)) <= {"same", "different"}
    observed = sum(answer.stage_times[-1].duration_s for answer in answers)
    assert read_metric("stage_seconds_sum", stage="decision") - stages == pytest.approx(observed, abs=1e-6)


def test_a_shadow_agrees_with_itself(bundle, other_bundle, tmp_path):
    async def ask(server, client):
        get_release(server, other_bundle).engine = server.router.stable.engine
        get_release(server, other_bundle).bundle = server.router.stable.bundle
        return await client.classify([PHOTO], listing_id="a")

    before = read_shadow_counts(other_bundle)
    run_with_shadow(bundle, other_bundle, tmp_path, ask)
    assert count_added(other_bundle, before) == {"same": 1}


def test_a_shadow_gets_the_hint_of_the_request(bundle, other_bundle, tmp_path):
    async def ask(server, client):
        get_release(server, other_bundle).engine = server.router.stable.engine
        get_release(server, other_bundle).bundle = bundle
        free = await client.classify([PHOTO], listing_id="free")
        root = free.category_path[0].category_id
        other = next(one.id for one in bundle.taxonomy.categories if one.parent_id is None and one.id != root)
        await client.classify([PHOTO], listing_id="hinted", ancestor_category_id=other)
        return other

    before = read_shadow_counts(other_bundle)
    hint = run_with_shadow(bundle, other_bundle, tmp_path, ask)
    assert count_added(other_bundle, before) == {"same": 2}
    (shadow,) = (row for row in read_table(tmp_path, "shadows") if row["listing_id"] == "hinted")
    assert (shadow["category_ids"][0], shadow["num_filled"], shadow["brand_filled"]) == (hint, 0, False)
    given = {row["listing_id"]: row["ancestor_given"] for row in read_table(tmp_path, "suggestions")}
    assert given == {"free": False, "hinted": True}


@pytest.mark.parametrize("error", [EngineUnavailable("away"), EngineBusy("full"), ZeroDivisionError("bug")])
def test_a_shadow_that_fails_is_counted_and_nobody_notices(bundle, other_bundle, tmp_path, error):
    async def ask(server, client):
        get_release(server, other_bundle).engine = FailingEngine(error)
        return [await client.classify([PHOTO], listing_id=f"m{n}") for n in range(3)]

    before = read_shadow_counts(other_bundle)
    answers = run_with_shadow(bundle, other_bundle, tmp_path, ask, health_interval_s=60)
    assert {answer.model.version for answer in answers} == {bundle.info.model_version}
    assert count_added(other_bundle, before) == {"failed": 3}
    assert not (tmp_path / "shadows").exists()


def test_under_load_shadows_are_dropped_first(bundle, other_bundle, tmp_path):
    async def ask(server, client):
        with server.admission.admit(SATURATION_PHOTOS, 0, deadline_s=30):  # callers use the whole machine
            answers = [await client.classify([PHOTO], listing_id=f"m{n}") for n in range(shadows.MAX_QUEUED + 3)]
            assert count_added(other_bundle, before) == {"dropped": 3}
        return answers

    before = read_shadow_counts(other_bundle)
    answers = run_with_shadow(bundle, other_bundle, tmp_path, ask)
    assert len(answers) == shadows.MAX_QUEUED + 3
    found = count_added(other_bundle, before)
    assert found.pop("dropped") == 3
    assert sum(found.values()) == shadows.MAX_QUEUED


def test_what_waits_for_a_shadow_that_is_unloaded_is_dropped_and_counted(bundle, other_bundle, tmp_path):
    async def ask(server, client):
        server.admission.is_busy = True
        await client.classify([PHOTO], listing_id="a")
        await server.apply_traffic_split(create_split(bundle))
        server.admission.is_busy = False

    before = read_shadow_counts(other_bundle)
    run_with_shadow(bundle, other_bundle, tmp_path, ask)
    assert count_added(other_bundle, before) == {"dropped": 1}


def test_what_a_shadow_has_not_answered_when_the_gateway_stops_is_dropped_and_counted(bundle, other_bundle, tmp_path):
    async def run():
        traffic_split = create_split(bundle, other_bundle, shadow=create_share(other_bundle))
        async with run_split(traffic_split, outcomes=str(tmp_path)) as (server, client):
            shadow = get_release(server, other_bundle)
            real, shadow.engine = shadow.engine, FailingEngine(EngineUnavailable("never"), seconds=60)
            for listing_id in "ab":  # one is in work, one waits
                await client.classify([PHOTO], listing_id=listing_id)
            await async_wait_until(lambda: shadow.engine.calls)
            await server.gateway.shadow_traffic.close()
            shadow.engine = real

    before = read_shadow_counts(other_bundle)
    asyncio.run(run())
    assert count_added(other_bundle, before) == {"dropped": 2}
