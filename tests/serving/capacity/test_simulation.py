"""The simulation against what queueing theory knows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from serving.capacity.simulation import Load, Service, simulate
from tests.support.capacity import create_profile


def mean_waits_ms(runs):
    return float(np.mean(runs)), 4 * float(np.std(runs, ddof=1)) / math.sqrt(len(runs))


def erlang_c(servers, load):
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("spread", ["exponential", "fixed"])
def test_waiting_for_cores_is_that_of_mmc_and_md1(servers, spread):
    decode_ms, load_erlang = 10.0, 0.7 * servers
    load = Load(listings_per_s=100 * load_erlang)
    service = Service(num_cores=servers, num_instances=1, queue_delay_ms=0, decode_distribution=spread)
    runs = [simulate(create_profile(decode_ms), load, service, num_listings=40_000, seed=seed) for seed in range(6)]
    mean, error = mean_waits_ms([run.decode_wait_ms for run in runs])
    mmc = erlang_c(servers, load_erlang) * decode_ms / (servers - load_erlang)
    if spread == "exponential":
        assert abs(mean - mmc) < error + 0.03 * mmc
    elif servers == 1:
        assert abs(mean - mmc / 2) < error + 0.03 * mmc  # Pollaczek & Khinchine: half of it
    else:
        assert 0.4 * mmc < mean < 0.7 * mmc
    assert runs[0].core_utilisation == pytest.approx(0.7, abs=0.02)


def test_waiting_for_an_instance_without_batches_is_that_of_md1():
    service = Service(num_cores=50, num_instances=1, max_batch=1, queue_delay_ms=0)
    load = Load(listings_per_s=60)
    runs = [
        simulate(create_profile(model_ms={1: 10.0}), load, service, num_listings=40_000, seed=seed) for seed in range(6)
    ]
    mean, error = mean_waits_ms([run.model_wait_ms for run in runs])
    assert abs(mean - 0.6 * 10 / (2 * 0.4)) < error + 0.2
    assert {run.mean_batch for run in runs} == {1.0}


def test_batches_carry_a_load_that_single_photos_could_not_and_no_more_than_their_largest():
    profile = create_profile(model_ms={1: 10.0, 8: 12.0, 32: 20.0})
    service = Service(num_cores=200, num_instances=1, max_batch=32)
    carried = simulate(profile, Load(listings_per_s=800), service, num_listings=20_000, seed=0)
    # Eight times what photos one by one would allow; it is busy all the time, and nobody waits for long.
    assert np.percentile(carried.latency_ms, 99) < 60
    assert 4 < carried.mean_batch <= 32
    drowned = simulate(profile, Load(listings_per_s=3000), service, num_listings=20_000, seed=0)
    assert drowned.mean_batch > 31
    assert drowned.latency_ms[-1] > 1000  # and ever more: 1,600 photos/s are all that it can do


def test_a_lone_request_waits_for_company_as_long_as_it_is_told():
    service = Service(num_cores=10, num_instances=1, queue_delay_ms=30)
    run = simulate(create_profile(5.0, {1: 7.0}), Load(listings_per_s=0.1), service, num_listings=200, seed=0)
    assert np.allclose(run.latency_ms, 5 + 30 + 7)
    full = replace(service, max_batch=1)
    run = simulate(create_profile(5.0, {1: 7.0}), Load(listings_per_s=0.1), full, num_listings=200, seed=0)
    assert np.allclose(run.latency_ms, 5 + 7)


def test_littles_law_holds_and_a_seed_repeats():
    profile, load = create_profile(8.0, {1: 5.0, 64: 60.0}, 1.0), Load(listings_per_s=100, photos_per_listing=4)
    service = Service(num_cores=5, num_instances=2)
    run = simulate(profile, load, service, num_listings=30_000, seed=1)
    again = simulate(profile, load, service, num_listings=30_000, seed=1)
    assert np.array_equal(run.latency_ms, again.latency_ms)
    # On the cores, on average: rate times time.
    assert run.core_utilisation * 5 == pytest.approx(100 * 4 * 9 / 1000, rel=0.05)
