"""What the tests of several packages of `serving` use."""

import pytest

from tests.support.backfill import create_market


@pytest.fixture
def market(tmp_path, synthetic_dataset):
    """Folder with manifest.csv, whose rows are not in the order of the listings, and the photos."""
    return create_market(tmp_path / "market", synthetic_dataset)
