"""Canary and shadow in one gateway process: who is answered by what, and what a bad one costs its listings."""

import asyncio

import pytest

from listing_vision_client import CallFailed
from serving.rollout.circuit_breaker import FAILURE_THRESHOLD
from serving.rollout.traffic_split import CANARY
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
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable


def count_calls(result, bundle):
    return read_metric("calls_total", result=result, model_release=bundle.release)


def count_fallbacks(reason):
    return read_metric("canary_fallbacks_total", reason=reason)


def test_listings_are_answered_by_their_share_and_every_answer_names_its_model(bundle, other_bundle):
    share = create_share(other_bundle, 0.5)

    async def run():
        async with run_split(create_split(bundle, other_bundle, canary=share)) as (_, client):
            ids = [f"m{number}" for number in range(30)]
            answers = [await client.classify([PHOTO], listing_id=name) for name in ids]
            again = [await client.classify([PHOTO], listing_id=name) for name in ids[:10]]
            return ids, answers, again, await client.classify([PHOTO]), await client.get_model()

    before = count_calls("OK", other_bundle)
    ids, answers, again, nameless, model = asyncio.run(run())
    for name, answer in zip(ids, answers, strict=True):
        expected = other_bundle if share.contains(name, CANARY) else bundle
        assert answer.model.version == expected.info.model_version
    versions = [answer.model.version for answer in answers]
    assert set(versions) == {bundle.info.model_version, other_bundle.info.model_version}
    assert [answer.model.version for answer in again] == versions[:10]
    assert nameless.model.version == model.model.version == bundle.info.model_version
    num_taken = sum(share.contains(name, CANARY) for name in [*ids, *ids[:10]])
    assert count_calls("OK", other_bundle) == before + num_taken


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (FailingEngine(EngineUnavailable("away")), "MODEL_UNAVAILABLE"),
        (FailingEngine(EngineBroken("zeros")), "MODEL_BROKEN"),
        (FailingEngine(EngineBusy("full")), "TOO_BUSY"),
        (FailingEngine(EngineUnavailable("never"), seconds=60), "DEADLINE_TOO_SHORT"),
        (FailingEngine(ZeroDivisionError("bug")), "INTERNAL"),
    ],
    ids=["away", "broken", "busy", "stuck", "bug"],
)
def test_a_canary_that_fails_costs_its_listings_nothing(bundle, other_bundle, engine, reason):
    async def run():
        traffic_split = create_split(bundle, other_bundle, canary=create_share(other_bundle))
        async with run_split(traffic_split, health_interval_s=60) as (server, client):
            canary = get_release(server, other_bundle)
            real, canary.engine = canary.engine, engine
            answer = await client.classify([PHOTO], listing_id="a", timeout_s=2)
            canary.engine = real
            return answer, server.list_unhealthy()

    before = count_fallbacks(reason)
    answer, unhealthy = asyncio.run(run())
    assert answer.model.version == bundle.info.model_version
    assert count_fallbacks(reason) == before + 1
    assert unhealthy == []  # one failure is no sickness


def test_a_canary_that_fails_again_and_again_is_not_asked_any_more_and_told_of(bundle, other_bundle):
    async def run():
        traffic_split = create_split(bundle, other_bundle, canary=create_share(other_bundle))
        async with run_split(traffic_split, health_interval_s=60) as (server, client):
            canary = get_release(server, other_bundle)
            real, canary.engine = canary.engine, FailingEngine(EngineUnavailable("away"))
            canary.stop_watching()  # nobody asks its golden photos
            for number in range(FAILURE_THRESHOLD + 3):
                answer = await client.classify([PHOTO], listing_id=str(number))
                assert answer.model.version == bundle.info.model_version
            num_asked, canary.engine = canary.engine.calls, real
            return num_asked, server.list_unhealthy()

    before = count_fallbacks("MODEL_UNAVAILABLE")
    assert asyncio.run(run()) == (FAILURE_THRESHOLD, [other_bundle.release])
    # Those that it was not asked for too: an operator sees how many listings of the experiment had another's answer.
    assert count_fallbacks("MODEL_UNAVAILABLE") == before + FAILURE_THRESHOLD + 3


def test_callers_in_a_hurry_are_no_proof_against_a_canary(bundle, other_bundle):
    async def run():
        traffic_split = create_split(bundle, other_bundle, canary=create_share(other_bundle))
        async with run_split(traffic_split, health_interval_s=60) as (server, client):
            canary = get_release(server, other_bundle)
            real, canary.engine = canary.engine, FailingEngine(EngineUnavailable("never"), seconds=60)
            for number in range(FAILURE_THRESHOLD + 1):
                answer = await client.classify([PHOTO], listing_id=str(number), timeout_s=1.2)
                assert answer.model.version == bundle.info.model_version
            canary.engine = real
            return server.list_unhealthy()

    assert asyncio.run(run()) == []


@pytest.mark.parametrize(
    ("estimate_wait_s", "num_asked", "to_blame"), [(0.1, FAILURE_THRESHOLD, True), (0.5, 6, False), (1.0, 0, False)]
)
def test_a_busy_machine_is_no_fault_of_the_canary(bundle, other_bundle, estimate_wait_s, num_asked, to_blame):
    async def run():
        traffic_split = create_split(bundle, other_bundle, canary=create_share(other_bundle))
        admission = BusyAdmission(wait_s=estimate_wait_s)
        async with run_split(traffic_split, admission=admission, health_interval_s=60) as (server, client):
            canary = get_release(server, other_bundle)
            canary.stop_watching()
            real, canary.engine = canary.engine, (stuck := FailingEngine(EngineUnavailable("never"), seconds=60))
            for number in range(6):
                # Of 2 s it has 0.8.
                answer = await client.classify([PHOTO], listing_id=str(number), timeout_s=2)
                assert answer.model.version == bundle.info.model_version
            canary.engine = real
            return stuck.calls, server.list_unhealthy()

    assert asyncio.run(run()) == (num_asked, [other_bundle.release] if to_blame else [])


def test_a_call_counts_for_who_was_asked_last(bundle, other_bundle):
    async def run():
        traffic_split = create_split(bundle, other_bundle, canary=create_share(other_bundle))
        async with run_split(traffic_split, health_interval_s=60) as (server, client):
            releases = [get_release(server, one) for one in (bundle, other_bundle)]
            real = [release.engine for release in releases]
            for release in releases:
                release.engine = FailingEngine(EngineBusy("full"))
            with pytest.raises(CallFailed):
                await client.classify([PHOTO], listing_id="a", timeout_s=1)
            with pytest.raises(CallFailed):  # nobody is asked
                await client.classify([], listing_id="a")
            for release, engine in zip(releases, real, strict=True):
                release.engine = engine

    def refused():
        return [count_calls(reason, b) for reason in ("TOO_BUSY", "NO_PHOTOS") for b in (bundle, other_bundle)]

    before = refused()
    asyncio.run(run())
    stable_busy, canary_busy, stable_empty, canary_empty = (b - a for a, b in zip(before, refused(), strict=True))
    assert stable_busy >= 1  # the client tries again while it has time
    assert (canary_busy, stable_empty, canary_empty) == (0, 1, 0)


def test_photos_that_nobody_can_use_are_no_fault_of_the_canary(bundle, other_bundle):
    async def run():
        async with run_split(create_split(bundle, other_bundle, canary=create_share(other_bundle))) as (_, client):
            with pytest.raises(CallFailed) as caught:
                await client.classify([b"text"], listing_id="a")
            mixed = await client.classify([b"text", PHOTO], listing_id="a")
            return caught.value.reason, mixed

    reason, mixed = asyncio.run(run())
    assert reason == "NO_USABLE_PHOTO"
    assert mixed.model.version == other_bundle.info.model_version
    assert [photo.error is not None for photo in mixed.photos] == [True, False]
