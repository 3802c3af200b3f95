"""An operator's commands, one after another, with gateways that may refuse what they are told."""

import asyncio
import shutil

import pytest

from serving.rollout.manager import ReleaseManager
from serving.rollout.state_file import ReleaseState
from serving.rollout.traffic_split import ReleaseSpec, TrafficSplit
from tests.support.bundles import change_manifest
from tests.support.signing import create_key_pair
from vision.attestation import sign_bundle
from vision.errors import ListingVisionError
from vision.runtime.files import compute_sha256


class Gateways:
    """What they were told, and what they refuse next."""

    def __init__(self):
        self.told, self.refuses = [], None

    async def route(self, traffic_split):
        await asyncio.sleep(0)
        if self.refuses:
            raise ListingVisionError(self.refuses)
        self.told.append(traffic_split)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the manager keeps its copies."""
    monkeypatch.setattr(f"{__name__}.COPIES", tmp_path / "copies")
    return tmp_path / "copies"


COPIES = None


def create_releases(bundle, gateways, *, can_load=True, public_key=None):
    first = ReleaseSpec(label=bundle.release, bundle=bundle.folder, model_name="listing_vision")
    traffic_split = TrafficSplit(releases=(first,), stable=bundle.release)
    return ReleaseManager(
        ReleaseState.start(traffic_split),
        gateways.route,
        triton=None,
        can_load=can_load,
        is_recording=False,
        folder=COPIES,
        public_key=public_key,
    )


def list_states(releases):
    return {one["release"]: one["state"] for one in asyncio.run(releases.status())}


def test_what_gateways_refuse_has_not_happened(bundle, other_bundle):
    gateways = Gateways()
    releases, other = create_releases(bundle, gateways), other_bundle.release
    gateways.refuses = "it does not answer its golden photos"
    with pytest.raises(ListingVisionError, match="golden photos"):
        asyncio.run(releases.load(str(other_bundle.folder)))
    assert list_states(releases) == {bundle.release: "stable"}
    gateways.refuses = None
    assert asyncio.run(releases.load(str(other_bundle.folder))) == other
    for command in (releases.promote, lambda label: releases.set_canary(label, 0.5)):
        gateways.refuses = "a gateway process does not answer"
        with pytest.raises(ListingVisionError):
            asyncio.run(command(other))
        assert list_states(releases) == {bundle.release: "stable", other: "loaded"}
    with pytest.raises(ListingVisionError, match="no release to go back to"):
        asyncio.run(releases.rollback())


def test_a_canary_is_removed_only_while_it_is_the_canary(bundle, other_bundle):
    releases, other = create_releases(bundle, Gateways()), other_bundle.release

    async def run():
        await releases.load(str(other_bundle.folder))
        await releases.set_canary(other, 0.5)
        found = [await releases.remove_canary("another", "unhealthy"), await releases.remove_canary(other, "unhealthy")]
        return found, await releases.status(), await releases.remove_canary(other, "unhealthy again")

    found, status, again = asyncio.run(run())
    assert (found, again) == ([False, True], False)
    assert [one["removal_reason"] for one in status] == [None, "unhealthy"]


def test_a_promoted_canary_is_no_canary_any_more(bundle, other_bundle):
    gateways = Gateways()
    releases, other = create_releases(bundle, gateways), other_bundle.release

    async def run():
        await releases.load(str(other_bundle.folder))
        await releases.set_canary(other, 0.5)
        await releases.promote(other)
        promoted = await releases.status()
        assert await releases.rollback() == bundle.release
        return promoted

    assert [one["state"] for one in asyncio.run(run())] == ["previous", "stable"]
    assert gateways.told[-2].canary is None
    assert list_states(releases) == {bundle.release: "stable", other: "previous"}


def test_the_triton_of_somebody_else_is_theirs_to_load(bundle, other_bundle):
    releases = create_releases(bundle, Gateways(), can_load=False)
    with pytest.raises(ListingVisionError, match="is not this service's own; load the model there"):
        asyncio.run(releases.load(str(other_bundle.folder)))


def test_another_model_under_the_version_of_a_loaded_one_is_refused(bundle, other_bundle, tmp_path):
    gateways = Gateways()
    releases = create_releases(bundle, gateways)
    fake = shutil.copytree(bundle.folder, tmp_path / "fake")
    shutil.copy(other_bundle.folder / "model.onnx", fake)
    change_manifest(fake, sha256={**bundle.sha256, "model.onnx": compute_sha256(fake / "model.onnx")})
    with pytest.raises(ListingVisionError, match=r"has the model version of the loaded .* but another model\.onnx"):
        asyncio.run(releases.load(str(fake)))
    with pytest.raises(ListingVisionError, match="is loaded already"):
        asyncio.run(releases.load(str(bundle.folder)))
    assert gateways.told == []


def test_a_loaded_release_does_not_need_the_folder_that_was_given(bundle, other_bundle, tmp_path, folder):
    given = shutil.copytree(other_bundle.folder, tmp_path / "given")
    gateways = Gateways()
    releases, other = create_releases(bundle, gateways), other_bundle.release
    asyncio.run(releases.load(str(given)))
    shutil.rmtree(given)
    (loaded,) = (one for one in gateways.told[-1].releases if one.label == other)
    assert compute_sha256(loaded.bundle / "model.onnx") == other_bundle.sha256["model.onnx"]
    assert [one["bundle"] for one in asyncio.run(releases.status())][1] == str(given)
    asyncio.run(releases.unload(other))
    assert list(folder.iterdir()) == []


def test_what_gateways_refuse_leaves_no_copy(bundle, other_bundle, folder):
    gateways = Gateways()
    gateways.refuses = "it does not answer its golden photos"
    with pytest.raises(ListingVisionError):
        asyncio.run(create_releases(bundle, gateways).load(str(other_bundle.folder)))
    assert list(folder.iterdir()) == []


def test_only_signed_bundles_are_loaded_where_a_key_is_given(bundle, other_bundle, tmp_path):
    private, public = create_key_pair(tmp_path)
    releases = create_releases(bundle, Gateways(), public_key=public)
    signed = shutil.copytree(other_bundle.folder, tmp_path / "signed")
    with pytest.raises(ListingVisionError, match=r"has no model\.sig"):
        asyncio.run(releases.load(str(signed)))
    sign_bundle(signed, private)
    assert asyncio.run(releases.load(str(signed))) == other_bundle.release
