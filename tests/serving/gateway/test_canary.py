"""Canary and shadow in one gateway process: who is answered by what, and what a bad one costs its listings."""

import asyncio
from dataclasses import replace

import pytest

from serving.client import CallFailed
from serving.config import ServeOptions
from serving.gateway import shadow as shadows
from serving.protocol import listing_vision_pb2 as pb
from serving.rollout.circuit_breaker import FAILURE_THRESHOLD
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseSpec, TrafficShare, TrafficSplit
from tests.support.gateway import PHOTO, BusyAdmission, FailingEngine, open_stub, read_metric, run_gateway_with
from tests.support.outcomes import read_table
from tests.support.waiting import async_wait_until
from vision.errors import EngineBroken, EngineBusy, EngineUnavailable, ListingVisionError


def create_routes(*bundles, **parts):
    releases = tuple(ReleaseSpec(label=b.release, bundle=b.folder, model_name="unused") for b in bundles)
    return TrafficSplit(releases=releases, stable=bundles[0].release, **parts)


def run_gateway(traffic_split, *, admission=None, **options):
    bundle = traffic_split.releases[0].bundle
    fixed = {"traffic_split": traffic_split, "port": 0, "in_process": True, "isolate": False, "drain_s": 0}
    return run_gateway_with(ServeOptions(bundle=bundle, **fixed, **options), admission=admission)


def load_canary(bundle, share=1.0):
    return TrafficShare(label=bundle.release, share=share)


def served(server, bundle):
    return server.router.releases[bundle.release]


def count_calls(result, bundle):
    return read_metric("calls_total", result=result, model_release=bundle.release)


def count_fallbacks(reason):
    return read_metric("canary_fallbacks_total", reason=reason)


def test_listings_are_answered_by_their_share_and_every_answer_names_its_model(bundle, other_bundle):
    share = load_canary(other_bundle, 0.5)

    async def run():
        async with run_gateway(create_routes(bundle, other_bundle, canary=share)) as (_, client):
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
        traffic_split = create_routes(bundle, other_bundle, canary=load_canary(other_bundle))
        async with run_gateway(traffic_split, health_interval_s=60) as (server, client):
            canary = served(server, other_bundle)
            real, canary.engine = canary.engine, engine
            answer = await client.classify([PHOTO], listing_id="a", timeout_s=2)
            canary.engine = real
            return answer, server.list_unhealthy()

    before = count_fallbacks(reason)
    answer, unwell = asyncio.run(run())
    assert answer.model.version == bundle.info.model_version
    assert count_fallbacks(reason) == before + 1
    assert unwell == []  # one failure is no sickness


def test_a_canary_that_fails_again_and_again_is_not_asked_any_more_and_told_of(bundle, other_bundle):
    async def run():
        traffic_split = create_routes(bundle, other_bundle, canary=load_canary(other_bundle))
        async with run_gateway(traffic_split, health_interval_s=60) as (server, client):
            canary = served(server, other_bundle)
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
        traffic_split = create_routes(bundle, other_bundle, canary=load_canary(other_bundle))
        async with run_gateway(traffic_split, health_interval_s=60) as (server, client):
            canary = served(server, other_bundle)
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
        traffic_split = create_routes(bundle, other_bundle, canary=load_canary(other_bundle))
        admission = BusyAdmission(wait_s=estimate_wait_s)
        async with run_gateway(traffic_split, admission=admission, health_interval_s=60) as (server, client):
            canary = served(server, other_bundle)
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
        traffic_split = create_routes(bundle, other_bundle, canary=load_canary(other_bundle))
        async with run_gateway(traffic_split, health_interval_s=60) as (server, client):
            releases = [served(server, one) for one in (bundle, other_bundle)]
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
        async with run_gateway(create_routes(bundle, other_bundle, canary=load_canary(other_bundle))) as (_, client):
            with pytest.raises(CallFailed) as caught:
                await client.classify([b"text"], listing_id="a")
            mixed = await client.classify([b"text", PHOTO], listing_id="a")
            return caught.value.reason, mixed

    reason, mixed = asyncio.run(run())
    assert reason == "NO_USABLE_PHOTO"
    assert mixed.model.version == other_bundle.info.model_version
    assert [photo.HasField("error") for photo in mixed.photos] == [True, False]


def test_routes_change_while_calls_go_on_and_what_is_not_well_changes_nothing(bundle, other_bundle, tmp_path):
    async def run():
        async with run_gateway(create_routes(bundle)) as (server, client):
            versions, stop = ([], [], []), asyncio.Event()

            async def ask(mine):
                while not stop.is_set():
                    mine.append((await client.classify([PHOTO], listing_id="a")).model.version)

            asking = [asyncio.create_task(ask(mine)) for mine in versions]
            both = create_routes(bundle, other_bundle)
            await server.apply_traffic_split(both)
            await server.apply_traffic_split(replace(both, stable=other_bundle.release))
            after = (await client.classify([PHOTO])).model.version
            gone = replace(both.releases[0], label="other", bundle=tmp_path)
            with pytest.raises(ListingVisionError):
                await server.apply_traffic_split(replace(both, releases=(*both.releases, gone)))
            unchanged = (await client.classify([PHOTO])).model.version
            await server.apply_traffic_split(create_routes(other_bundle))  # the first one is let go of
            stop.set()
            await asyncio.gather(*asking)
            num_left = len(server.router.releases)
            return versions, after, unchanged, num_left, (await client.get_model()).model.version

    versions, after, unchanged, num_left, model = asyncio.run(run())
    old, new = bundle.info.model_version, other_bundle.info.model_version
    assert (after, unchanged, num_left, model) == (new, new, 1, new)
    for mine in versions:
        assert mine == sorted(mine, key=[old, new].index)  # never back


def test_a_release_whose_bundle_has_gone_keeps_no_process_from_starting(bundle, other_bundle, tmp_path):
    gone = ReleaseSpec(label="gone", bundle=tmp_path / "gone", model_name="unused")
    both = create_routes(bundle, other_bundle)
    traffic_split = replace(both, releases=(*both.releases, gone), canary=TrafficShare(label="gone", share=1))

    async def run():
        async with run_gateway(traffic_split) as (server, client):
            answer = await client.classify([PHOTO], listing_id="a")
            unwell = server.list_unhealthy()
            off = replace(traffic_split, canary=None)
            await server.apply_traffic_split(off)
            later = server.list_unhealthy()
            await server.apply_traffic_split(replace(off, stable=other_bundle.release))
            for part in ({"stable": "gone"}, {"shadow": TrafficShare(label="gone", share=1)}):
                with pytest.raises(ListingVisionError, match="not a model bundle"):
                    await server.apply_traffic_split(replace(off, **part))
            await server.apply_traffic_split(both)
            return answer.model.version, unwell, later, (await client.get_model()).model.version

    version = bundle.info.model_version
    assert asyncio.run(run()) == (version, ["gone"], [], version)


def test_a_release_is_let_go_of_after_its_last_call(bundle, other_bundle):
    class Slow(FailingEngine):
        async def infer(self, photos_nhwc):
            self.calls += 1
            await asyncio.sleep(0.5)
            return await self.error.infer(photos_nhwc)

    async def run():
        async with run_gateway(create_routes(bundle, other_bundle)) as (server, client):
            old = served(server, bundle)
            real, old.engine = old.engine, (slow := Slow(old.engine))
            asked = asyncio.create_task(client.classify([PHOTO]))
            await async_wait_until(lambda: slow.calls)
            old.engine, slow.error = real, real
            await server.apply_traffic_split(create_routes(other_bundle))
            was_answered = asked.done() or old.num_in_flight == 0
            return was_answered, old.is_closed, (await asked).model.version

    assert asyncio.run(run()) == (True, True, bundle.info.model_version)


def test_a_chosen_category_may_be_of_any_taxonomy_that_is_loaded(bundle, other_bundle, tmp_path):
    async def run():
        traffic_split = create_routes(bundle, other_bundle, canary=load_canary(other_bundle))
        async with run_gateway(traffic_split, outcomes=str(tmp_path)) as (server, _):
            release = served(server, other_bundle)
            tree = release.bundle.taxonomy
            first, *others = tree.categories
            renamed = replace(
                tree, categories=(replace(first, id="elsewhere"), *(c for c in others if not c.parent_id))
            )
            release.bundle = replace(release.bundle, taxonomy=renamed)
            async with open_stub(server) as stub:
                for category in (first.id, "elsewhere"):
                    await stub.ReportOutcome(pb.ReportOutcomeRequest(listing_id="a", category_id=category))

    asyncio.run(run())
    assert len(read_table(tmp_path, "outcomes")) == 2


SATURATION_PHOTOS = 4


def run_with_shadow(bundle, other_bundle, folder, work, *, share=1.0, **options):
    """Runs work(server, client) with the other bundle as a shadow, until none of its listings waits."""

    async def run():
        traffic_split = create_routes(bundle, other_bundle, shadow=load_canary(other_bundle, share))
        admission = BusyAdmission(is_busy=False)
        async with run_gateway(traffic_split, admission=admission, outcomes=str(folder), **options) as (server, client):
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
    async def ask(server, client):
        return [await client.classify([PHOTO], listing_id=f"m{n}") for n in range(6)] + [await client.classify([PHOTO])]

    before, stages = read_shadow_counts(other_bundle), read_metric("stage_seconds_sum", stage="decision")
    answers = run_with_shadow(bundle, other_bundle, tmp_path, ask, share=0.5)
    assert {answer.model.version for answer in answers} == {bundle.info.model_version}
    share = load_canary(other_bundle, 0.5)
    expected = {f"m{n}" for n in range(6) if share.contains(f"m{n}", SHADOW)}
    rows = read_table(tmp_path, "shadows")
    assert {row["listing_id"] for row in rows} == expected != set()
    assert {row["model_version"] for row in rows} == {other_bundle.info.model_version}
    assert {row["answered_model_version"] for row in rows} == {bundle.info.model_version}
    # One photo, so one verdict for all.
    assert sum(count_added(other_bundle, before).values()) == len(expected)
    assert set(count_added(other_bundle, before)) <= {"same", "different"}
    observed = sum(1000 * answer.stage_times[-1].duration_ms for answer in answers) / 1e6
    assert read_metric("stage_seconds_sum", stage="decision") - stages == pytest.approx(observed, rel=1e-6)


def test_a_shadow_agrees_with_itself(bundle, other_bundle, tmp_path):
    async def ask(server, client):
        served(server, other_bundle).engine = server.router.stable.engine
        served(server, other_bundle).bundle = server.router.stable.bundle
        return await client.classify([PHOTO], listing_id="a")

    before = read_shadow_counts(other_bundle)
    run_with_shadow(bundle, other_bundle, tmp_path, ask)
    assert count_added(other_bundle, before) == {"same": 1}


@pytest.mark.parametrize("error", [EngineUnavailable("away"), EngineBusy("full"), ZeroDivisionError("bug")])
def test_a_shadow_that_fails_is_counted_and_nobody_notices(bundle, other_bundle, tmp_path, error):
    async def ask(server, client):
        served(server, other_bundle).engine = FailingEngine(error)
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
        await server.apply_traffic_split(create_routes(bundle))
        server.admission.is_busy = False

    before = read_shadow_counts(other_bundle)
    run_with_shadow(bundle, other_bundle, tmp_path, ask)
    assert count_added(other_bundle, before) == {"dropped": 1}


def test_what_a_shadow_has_not_answered_when_the_gateway_stops_is_dropped_and_counted(bundle, other_bundle, tmp_path):
    async def run():
        traffic_split = create_routes(bundle, other_bundle, shadow=load_canary(other_bundle))
        async with run_gateway(traffic_split, outcomes=str(tmp_path)) as (server, client):
            shadow = served(server, other_bundle)
            real, shadow.engine = shadow.engine, FailingEngine(EngineUnavailable("never"), seconds=60)
            for listing_id in "ab":  # one is in work, one waits
                await client.classify([PHOTO], listing_id=listing_id)
            await async_wait_until(lambda: shadow.engine.calls)
            await server.gateway.shadow_traffic.close()
            shadow.engine = real

    before = read_shadow_counts(other_bundle)
    asyncio.run(run())
    assert count_added(other_bundle, before) == {"dropped": 2}
