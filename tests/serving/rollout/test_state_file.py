"""The state of a service's releases in a file."""

from dataclasses import replace
from pathlib import Path

import pytest

from serving.rollout.state_file import ReleaseState, StateFolder
from serving.rollout.traffic_split import ReleaseSpec, TrafficShare, TrafficSplit
from vision.errors import ListingVisionError

OLD = ReleaseSpec(label="old", bundle=Path("/bundles/old"), model_name="listing_vision")
NEW = ReleaseSpec(label="new", bundle=Path("/state/releases/listing_vision_2"), model_name="listing_vision_2")
INITIAL = TrafficSplit(releases=(OLD,), stable="old")
PROMOTED = replace(
    ReleaseState.start(INITIAL),
    traffic_split=TrafficSplit(releases=(OLD, NEW), stable="new"),
    sources={"old": Path("/bundles/old"), "new": Path("/bundles/new")},
    previous="old",
    removal_reasons={"old": "it failed"},
)


def test_what_is_written_is_read(tmp_path):
    folder = StateFolder(tmp_path / "state")
    assert folder.read() is None
    folder.write(PROMOTED)
    assert folder.read() == PROMOTED


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"initial": 1}'])
def test_a_state_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    (tmp_path / "releases.json").write_text(content)
    with pytest.raises(ListingVisionError, match=f"{tmp_path}/releases.json cannot be read .*; remove it to serve"):
        StateFolder(tmp_path).read()


def test_two_services_cannot_share_a_folder(tmp_path):
    first = StateFolder(tmp_path)
    with pytest.raises(ListingVisionError, match=f"--state-folder {tmp_path} is in use by another"):
        StateFolder(tmp_path)
    first.close()
    StateFolder(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ListingVisionError, match=f"--state-folder {tmp_path}/file/state cannot be used"):
        StateFolder(tmp_path / "file" / "state")


def test_a_state_holds_for_the_options_that_it_began_with():
    canary = TrafficSplit(releases=(OLD, NEW), stable="old", canary=TrafficShare(label="new", share=0.1))
    assert PROMOTED.follows(INITIAL)
    assert not PROMOTED.follows(TrafficSplit(releases=(NEW,), stable="new"))
    assert not PROMOTED.follows(canary)
    larger = replace(canary, canary=TrafficShare(label="new", share=0.2))
    assert not ReleaseState.start(canary).follows(larger)


def test_bundles_of_the_options_are_read_where_they_lie_now():
    moved = replace(OLD, bundle=Path("/elsewhere/old"))
    state = PROMOTED.continue_from(TrafficSplit(releases=(moved,), stable="old"))
    assert state.traffic_split == TrafficSplit(releases=(moved, NEW), stable="new")
    assert state.sources == {"old": Path("/elsewhere/old"), "new": Path("/bundles/new")}
    assert (state.previous, state.removal_reasons) == ("old", {"old": "it failed"})
