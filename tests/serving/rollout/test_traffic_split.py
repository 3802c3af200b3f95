"""Who is answered by which release: the same everywhere, as many as asked for, and never back and forth."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseSpec, TrafficShare, TrafficSplit, hash_bucket
from vision.errors import ListingVisionError

IDS = st.text(min_size=1, max_size=50)
SHARES = st.floats(0, 1, exclude_min=True)


def traffic_split(*, canary=None, shadow=None, stable="old", labels=("old", "new", "third")):
    releases = tuple(ReleaseSpec(label=label, bundle=Path("/b") / label, model_name=label) for label in labels)
    return TrafficSplit(releases=releases, stable=stable, canary=canary, shadow=shadow)


def test_a_place_is_the_published_hash():
    # The first 64 bits of sha256("canary:new:listing-1"), as anyone may compute them.
    assert hash_bucket("listing-1", "canary:new") == pytest.approx(0xB62881F09FD44002 / 2**64, abs=2**-50)


@given(IDS, SHARES, SHARES)
def test_a_larger_share_holds_every_listing_of_a_smaller_one(listing_id, one, other):
    small, large = sorted((one, other))
    if TrafficShare(label="new", share=small).contains(listing_id, CANARY):
        assert TrafficShare(label="new", share=large).contains(listing_id, CANARY)


@given(IDS)
def test_all_are_in_the_whole(listing_id):
    assert 0 <= hash_bucket(listing_id, "canary:new") < 1
    assert TrafficShare(label="new", share=1.0).contains(listing_id, CANARY)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_a_share_is_as_large_as_asked_for(share):
    taken = sum(TrafficShare(label="new", share=share).contains(f"m{number}", CANARY) for number in range(40_000))
    assert taken / 40_000 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 40_000))


def test_the_next_canary_takes_others_than_the_one_before_and_a_shadow_others_than_a_canary():
    ids = [f"m{number}" for number in range(20_000)]
    first = {name for name in ids if TrafficShare(label="first", share=0.1).contains(name, CANARY)}
    for label, purpose in (("second", CANARY), ("first", SHADOW)):
        other = {name for name in ids if TrafficShare(label=label, share=0.1).contains(name, purpose)}
        assert len(first & other) / len(first) == pytest.approx(0.1, abs=0.03)


def test_a_listing_without_an_id_is_in_no_share():
    assert not TrafficShare(label="new", share=1.0).contains("", CANARY)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"canary": TrafficShare(label="new", share=1.5)}, r"canary share 1.5 is outside \(0, 1\]"),
        ({"canary": TrafficShare(label="new", share=0.0)}, r"canary share 0 is outside \(0, 1\]"),
        ({"shadow": TrafficShare(label="new", share=float("nan"))}, "shadow share nan is outside"),
        ({"canary": TrafficShare(label="unknown", share=0.1)}, "unknown is not loaded; loaded: old, new, third"),
        ({"stable": "unknown"}, "unknown is not loaded"),
        ({"canary": TrafficShare(label="old", share=0.1)}, "old cannot be stable and canary"),
        (
            {"canary": TrafficShare(label="new", share=0.1), "shadow": TrafficShare(label="new", share=1.0)},
            "new cannot be canary",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(parts, said):
    with pytest.raises(ListingVisionError, match=said):
        traffic_split(**parts)


@given(SHARES, st.booleans())
def test_routes_survive_the_way_to_a_gateway_process(share, with_shadow):
    import json

    shadow = TrafficShare(label="third", share=1.0) if with_shadow else None
    made = traffic_split(canary=TrafficShare(label="new", share=share), shadow=shadow)
    assert TrafficSplit.from_dict(json.loads(json.dumps(made.to_dict()))) == made
