"""What the benchmark of a device's decoding says, with a CPU in the device's place."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.gpu.agreement import DeviceModel, Pair, compare_decoding, predict_both
from vision.manifest import Manifest


@pytest.fixture(scope="module")
def pair(bundle, synthetic_dataset):
    decodes = DeviceModel(bundle, torch.device("cpu"))
    found = predict_both(
        bundle, Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("test"), decodes
    )
    assert decodes.num_photos == len(found.files.groups)
    assert decodes.num_on_device == len(decodes.grey_differences) > 0
    assert 0 < decodes.grey_differences.mean() < 2
    return found


def test_the_same_answers_change_nothing(bundle, pair):
    same = Pair(pair.pixels, pair.pixels)
    found = compare_decoding(bundle, same, same, num_resamples=3)
    assert {value for name, value in found.items() if name.startswith("changed_")} == {0.0}
    assert found["mean_logit_difference"] == 0
    assert found["violation_rate_certified_from_pixels"] == found["violation_rate_certified_from_files"]


def test_other_answers_are_counted(bundle, pair):
    assert 0 < np.abs(pair.files.category_logits - pair.pixels.category_logits).max() < 1
    wrong = dataclasses.replace(
        pair.pixels,
        category_logits=np.roll(20 * pair.pixels.category_logits, 1, axis=1),
        brand_logits=np.roll(20 * pair.pixels.brand_logits, 1, axis=1),
    )
    found = compare_decoding(bundle, pair, Pair(pair.pixels, wrong), num_resamples=3)
    assert found["changed_leaf_share"] == 1
    assert found["changed_brand_share"] > 0.5
    assert found["brand_top1_from_files"] < found["brand_top1_from_pixels"]
