"""What the tests of several packages of `serving` use."""

import pytest

from tests.support.backfill import create_market, run_backfill
from tests.support.bundles import copy_certified_for
from vision.bundle import load_bundle


@pytest.fixture
def market(tmp_path, synthetic_dataset):
    """Folder with manifest.csv, whose rows are not in the order of the listings, and the photos."""
    return create_market(tmp_path / "market", synthetic_dataset)


@pytest.fixture(scope="session")
def certified_bundle(bundle, tmp_path_factory):
    """A bundle that fills each field from 0.15 on."""
    folder = tmp_path_factory.mktemp("certified") / "bundle"
    return load_bundle(copy_certified_for(bundle, folder, "onnxruntime-cpu", threshold=0.15))


@pytest.fixture(scope="session")
def finished_backfill(certified_bundle, tmp_path_factory, synthetic_dataset):
    """The store of a finished backfill of `certified_bundle` in shards of eight listings; read only."""
    folder = tmp_path_factory.mktemp("finished")
    market = create_market(folder / "market", synthetic_dataset)
    return run_backfill(certified_bundle, market, folder / "out", listings_per_shard=8)
