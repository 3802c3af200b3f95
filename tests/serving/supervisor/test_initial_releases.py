"""The releases that a service starts with, without one and with what an earlier run has left."""

import asyncio
import shutil
from dataclasses import replace

import pytest

from serving.config import ServeOptions
from serving.rollout.manager import ReleaseManager
from serving.rollout.state_file import StateFolder
from serving.supervisor.initial_releases import load_initial_releases
from vision.errors import ListingVisionError


async def accept(traffic_split):
    """A gateway that does as it is told."""


def run_service(options, path, *commands):
    """Run a service for some commands and let it die; return the state it began with and the status it ended with."""
    folder = StateFolder(path)

    async def serve():
        state = await load_initial_releases(options, None, folder)
        manager = ReleaseManager(
            state,
            accept,
            triton=None,
            can_load=True,
            is_recording=bool(options.outcomes),
            folder=folder.releases,
            save=folder.write,
        )
        for command, *arguments in commands:
            await getattr(manager, command)(*arguments)
        return state, await manager.status()

    try:
        return asyncio.run(serve())
    finally:
        folder.close()


@pytest.fixture
def options(bundle):
    return ServeOptions(bundle=bundle.folder, in_process=True)


def test_without_a_state_folder_a_service_has_what_its_options_name(options, bundle):
    state = asyncio.run(load_initial_releases(options, None, None))
    assert (state.traffic_split.stable, state.traffic_split.labels) == (bundle.release, (bundle.release,))


def test_what_was_promoted_is_stable_again_and_can_be_rolled_back(options, bundle, other_bundle, tmp_path):
    given = shutil.copytree(other_bundle.folder, tmp_path / "given")
    new = other_bundle.release
    _, before = run_service(options, tmp_path / "state", ("load", given), ("promote", new))
    shutil.rmtree(given)
    state, after = run_service(options, tmp_path / "state")
    assert state.traffic_split.stable == new
    assert after == before
    assert [one["state"] for one in after] == ["previous", "stable"]
    run_service(options, tmp_path / "state", ("rollback",))
    state, _ = run_service(options, tmp_path / "state")
    assert (state.traffic_split.stable, state.previous) == (bundle.release, new)


def test_what_was_unloaded_stays_so_and_its_copy_goes(options, bundle, other_bundle, tmp_path):
    old, new = bundle.release, other_bundle.release
    copies = tmp_path / "state" / "releases"
    run_service(options, tmp_path / "state", ("load", other_bundle.folder), ("promote", new), ("unload", old))
    (copies / "listing_vision_9").mkdir()  # of a load that a kill has ended
    state, _ = run_service(options, tmp_path / "state")
    assert state.traffic_split.labels == (new,)
    assert [path.name for path in copies.iterdir()] == ["listing_vision_2"]
    # The next one has another name in Triton.
    run_service(options, tmp_path / "state", ("load", bundle.folder))
    assert {path.name for path in copies.iterdir()} == {"listing_vision_2", "listing_vision_3"}


def test_a_canary_that_was_removed_stays_so(bundle, other_bundle, tmp_path):
    options = ServeOptions(bundle=bundle.folder, in_process=True, canary=other_bundle.folder, canary_share=0.1)
    new = other_bundle.release
    state, _ = run_service(options, tmp_path / "state", ("remove_canary", new, "it failed"))
    assert state.traffic_split.canary.label == new
    state, after = run_service(options, tmp_path / "state")
    assert (state.traffic_split.canary, state.traffic_split.labels) == (None, (bundle.release, new))
    assert after[1]["removal_reason"] == "it failed"


def test_a_shadow_without_a_place_for_its_records_is_dropped(options, other_bundle, tmp_path, caplog):
    new = other_bundle.release
    recording = replace(options, outcomes=str(tmp_path / "outcomes"))
    run_service(recording, tmp_path / "state", ("load", other_bundle.folder), ("set_shadow", new, 0.5))
    state, _ = run_service(recording, tmp_path / "state")
    assert state.traffic_split.shadow.label == new
    state, after = run_service(options, tmp_path / "state")
    assert (state.traffic_split.shadow, after[1]["state"]) == (None, "loaded")
    assert f"shadow {new} is dropped: there is no --outcomes" in caplog.text


def test_other_options_begin_again(options, bundle, other_bundle, tmp_path, caplog):
    run_service(options, tmp_path / "state", ("load", other_bundle.folder), ("promote", other_bundle.release))
    other_options = ServeOptions(bundle=other_bundle.folder, in_process=True)
    state, _ = run_service(other_options, tmp_path / "state")
    assert state.traffic_split.labels == (other_bundle.release,)
    assert f"other releases than those {tmp_path / 'state'} began with" in caplog.text
    assert list((tmp_path / "state" / "releases").iterdir()) == []


def test_a_copy_that_was_damaged_is_refused_with_the_way_out(options, other_bundle, tmp_path):
    run_service(options, tmp_path / "state", ("load", other_bundle.folder), ("promote", other_bundle.release))
    (tmp_path / "state" / "releases" / "listing_vision_2" / "taxonomy.json").write_text("{}")
    with pytest.raises(ListingVisionError, match=f"taxonomy.*to serve .* alone, remove {tmp_path / 'state'}"):
        run_service(options, tmp_path / "state")
