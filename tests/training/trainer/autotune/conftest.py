import pytest

from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


@pytest.fixture
def data(synthetic_dataset):
    return Manifest.load(str(synthetic_dataset / "manifest.parquet")), Taxonomy.load(
        synthetic_dataset / "taxonomy.json"
    )
