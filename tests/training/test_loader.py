import numpy as np
import pytest
import torch

from training.loader import evaluation_batches, training_batches
from vision.errors import RunError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Manifest, photo_bytes
from vision.taxonomy import Taxonomy


@pytest.fixture
def data(drawn):
    manifest = Manifest.load(str(drawn / "manifest.parquet")).where_split("train")
    return manifest, manifest.labels(Taxonomy.load(drawn / "taxonomy.json"))


def test_every_photo_comes_once_an_epoch_at_the_stage_size(data, small_recipe):
    loader, steps_per_epoch = training_batches(*data, small_recipe, first_step=0, num_workers=0)
    batches = list(loader)
    assert len(batches) == steps_per_epoch * 3
    sizes = [batch.photos_nhwc.shape for batch in batches]
    assert {s[1:] for s in sizes[:steps_per_epoch]} == {(48, 48, 3)}
    assert {s[1:] for s in sizes[steps_per_epoch:]} == {(64, 64, 3)}
    for epoch in range(3):
        rows = torch.cat([b.rows for b in batches[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch]])
        assert len(rows) == len(rows.unique()) == steps_per_epoch * small_recipe.batch_size


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_begun_in_the_middle_gives_the_same_pixels(data, small_recipe, num_workers):
    whole, _ = training_batches(*data, small_recipe, first_step=0, num_workers=0)
    rest, _ = training_batches(*data, small_recipe, first_step=3, num_workers=num_workers)
    for one, other in zip(list(whole)[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_epochs_differ(data, small_recipe):
    loader, steps_per_epoch = training_batches(*data, small_recipe, first_step=0, num_workers=0)
    batches = list(loader)
    assert not torch.equal(batches[steps_per_epoch].rows, batches[2 * steps_per_epoch].rows)


def test_evaluation_photos_are_those_of_serving_in_order(data):
    preprocessing = Preprocessing(input_px=64)
    batches = list(evaluation_batches(*data, preprocessing, batch_size=7, num_workers=0))
    assert torch.cat([b.rows for b in batches]).tolist() == list(range(len(data[0])))
    served = prepare_photo(photo_bytes(data[0].photo_url(9)), preprocessing)
    assert np.array_equal(batches[1].photos_nhwc[2].numpy(), served)


def test_a_bad_photo_is_named(data, small_recipe, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    rows = [{**data[0].table.slice(0, 1).to_pylist()[0], "photo": str(tmp_path / "broken.jpg")}] * 16
    loader, _ = training_batches(Manifest.from_rows(rows, ""), data[1], small_recipe, first_step=0, num_workers=0)
    with pytest.raises(RunError, match=r"broken\.jpg \(manifest row \d+\) cannot be used.*data check"):
        next(iter(loader))


def test_too_few_photos_for_a_batch(data, small_recipe):
    few = data[0].take(np.arange(3))
    with pytest.raises(RunError, match="3 training photos do not fill one batch of 16"):
        training_batches(few, data[1], small_recipe, first_step=0, num_workers=0)
