"""The least service that keeps a latency."""

from dataclasses import replace

import pytest

from serving.capacity.planner import estimate, plan
from serving.capacity.simulation import Load, Service
from tests.support.capacity import create_profile
from vision.errors import ListingVisionError


def test_more_servers_are_never_slower():
    profile, load = create_profile(8.0, {1: 5.0, 64: 60.0}), Load(listings_per_s=100, photos_per_listing=4)
    p99 = [
        estimate(profile, load, Service(num_cores=cores, num_instances=2), num_runs=2, num_listings=5000).p99_ms
        for cores in (4, 5, 8, 16)
    ]
    assert p99 == sorted(p99, reverse=True)


def test_the_plan_is_the_least_and_names_what_is_used_most():
    profile = create_profile(7.0, {1: 3.0, 32: 12.0}, 1.0)
    load = Load(listings_per_s=200, photos_per_listing=4)
    found = plan(profile, load, p99_ms=150, service=Service(num_cores=1, num_instances=1))
    assert found.estimate.p99_ms <= 150
    assert found.service.num_cores >= 200 * 4 * 8 / 1000
    assert found.bottleneck == "cores"
    fewer = replace(found.service, num_cores=found.service.num_cores - 1)
    worse = estimate(profile, load, fewer)
    assert worse.p99_ms + worse.p99_error_ms > 150 or worse.simulation.core_utilisation >= 0.97


def test_what_cannot_be_is_told():
    with pytest.raises(ListingVisionError, match=r"p99 is \d+ ms in an idle service, more than 20 ms"):
        plan(
            create_profile(7.0, {1: 30.0}),
            Load(listings_per_s=1),
            p99_ms=20,
            service=Service(num_cores=1, num_instances=1),
        )
    with pytest.raises(ListingVisionError, match="are needed, more than 100000"):
        plan(create_profile(7.0), Load(listings_per_s=1e9), p99_ms=20, service=Service(num_cores=1, num_instances=1))
