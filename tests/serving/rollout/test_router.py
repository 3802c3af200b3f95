import asyncio
from dataclasses import replace

import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.rollout.traffic_split import ReleaseSpec, TrafficShare
from tests.support.gateway import PHOTO, FailingEngine, create_share, create_split, get_release, open_stub, run_split
from tests.support.outcomes import read_table
from tests.support.waiting import async_wait_until
from vision.errors import ListingVisionError


def test_routes_change_while_calls_go_on_and_what_is_not_well_changes_nothing(bundle, other_bundle, tmp_path):
    async def run():
        async with run_split(create_split(bundle)) as (server, client):
            versions, stop = ([], [], []), asyncio.Event()

            async def ask(mine):
                while not stop.is_set():
                    mine.append((await client.classify([PHOTO], listing_id="a")).model.version)

            asking = [asyncio.create_task(ask(mine)) for mine in versions]
            both = create_split(bundle, other_bundle)
            await server.apply_traffic_split(both)
            await server.apply_traffic_split(replace(both, stable=other_bundle.release))
            after = (await client.classify([PHOTO])).model.version
            gone = replace(both.releases[0], label="other", bundle=tmp_path)
            with pytest.raises(ListingVisionError):
                await server.apply_traffic_split(replace(both, releases=(*both.releases, gone)))
            unchanged = (await client.classify([PHOTO])).model.version
            await server.apply_traffic_split(create_split(other_bundle))  # the first one is let go of
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
    both = create_split(bundle, other_bundle)
    traffic_split = replace(both, releases=(*both.releases, gone), canary=TrafficShare(label="gone", share=1))

    async def run():
        async with run_split(traffic_split) as (server, client):
            answer = await client.classify([PHOTO], listing_id="a")
            unhealthy = server.list_unhealthy()
            off = replace(traffic_split, canary=None)
            await server.apply_traffic_split(off)
            later = server.list_unhealthy()
            await server.apply_traffic_split(replace(off, stable=other_bundle.release))
            for part in ({"stable": "gone"}, {"shadow": TrafficShare(label="gone", share=1)}):
                with pytest.raises(ListingVisionError, match="not a model bundle"):
                    await server.apply_traffic_split(replace(off, **part))
            await server.apply_traffic_split(both)
            return answer.model.version, unhealthy, later, (await client.get_model()).model.version

    version = bundle.info.model_version
    assert asyncio.run(run()) == (version, ["gone"], [], version)


def test_a_release_is_let_go_of_after_its_last_call(bundle, other_bundle):
    class Slow(FailingEngine):
        async def infer(self, photos_nhwc, **options):
            self.calls += 1
            await asyncio.sleep(0.5)
            return await self.error.infer(photos_nhwc)

    async def run():
        async with run_split(create_split(bundle, other_bundle)) as (server, client):
            old = get_release(server, bundle)
            real, old.engine = old.engine, (slow := Slow(old.engine))
            asked = asyncio.create_task(client.classify([PHOTO]))
            await async_wait_until(lambda: slow.calls)
            old.engine, slow.error = real, real
            await server.apply_traffic_split(create_split(other_bundle))
            was_answered = asked.done() or old.num_in_flight == 0
            return was_answered, old.is_closed, (await asked).model.version

    assert asyncio.run(run()) == (True, True, bundle.info.model_version)


def test_a_chosen_category_may_be_of_any_taxonomy_that_is_loaded(bundle, other_bundle, tmp_path):
    async def run():
        traffic_split = create_split(bundle, other_bundle, canary=create_share(other_bundle))
        async with run_split(traffic_split, outcomes=str(tmp_path)) as (server, _):
            release = get_release(server, other_bundle)
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
