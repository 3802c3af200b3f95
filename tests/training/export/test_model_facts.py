import json

import pytest

from training.export.model_facts import count_photos, measure_on_test
from vision.engine import OnnxEngine
from vision.manifest import Manifest


@pytest.fixture
def manifest(synthetic_dataset):
    return Manifest.load(str(synthetic_dataset / "manifest.parquet"))


def test_photos_are_counted_by_split(manifest):
    counts = count_photos(manifest)
    assert list(counts) == ["train", "val", "test"]
    assert counts["test"] == len(manifest.select_split("test"))


def test_figures_are_of_the_test_split_alone(manifest, bundle):
    asked = (bundle.taxonomy, bundle.info.preprocessing, OnnxEngine(bundle).infer)
    found = measure_on_test(manifest, *asked)
    assert found["category"]["num"] == len(manifest.select_split("test"))
    low, high = found["category"]["top1_interval"]
    assert low <= found["category"]["top1"] <= high
    assert json.loads(json.dumps(found)) == bundle.info.training["test"]
    assert measure_on_test(manifest.select_split("val"), *asked) is None
