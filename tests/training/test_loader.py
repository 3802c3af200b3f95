import json

import numpy as np
import pytest
import torch

from training.loader import evaluation_batches, training_batches
from training.sampling import Draws
from vision.errors import RunError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Manifest, photo_bytes
from vision.taxonomy import Taxonomy


@pytest.fixture
def data(drawn):
    manifest = Manifest.load(str(drawn / "manifest.parquet")).where_split("train")
    return manifest, manifest.labels(Taxonomy.load(drawn / "taxonomy.json"))


def batches_of(data, recipe, *, num_workers=0, only_crop=False, **draws):
    drawn = Draws(*data, recipe, **draws)
    return training_batches(*data, recipe, drawn, num_workers=num_workers, only_crop=only_crop), drawn.steps_per_epoch


def test_every_photo_comes_once_an_epoch_at_the_stage_size(data, small_recipe):
    loader, steps_per_epoch = batches_of(data, small_recipe)
    batches = list(loader)
    assert len(batches) == steps_per_epoch * 3
    sizes = [batch.photos_nhwc.shape for batch in batches]
    assert {s[1:] for s in sizes[:steps_per_epoch]} == {(48, 48, 3)}
    assert {s[1:] for s in sizes[steps_per_epoch:]} == {(64, 64, 3)}
    for epoch in range(3):
        rows = torch.cat([b.rows for b in batches[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch]])
        assert sorted(rows.tolist()) == list(range(len(data[0])))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_begun_in_the_middle_gives_the_same_pixels(data, small_recipe, num_workers):
    whole, _ = batches_of(data, small_recipe)
    rest, _ = batches_of(data, small_recipe, first_step=3, num_workers=num_workers)
    for one, other in zip(list(whole)[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def test_epochs_differ(data, small_recipe):
    loader, steps_per_epoch = batches_of(data, small_recipe)
    batches = list(loader)
    assert not torch.equal(batches[steps_per_epoch].rows, batches[2 * steps_per_epoch].rows)


def test_evaluation_photos_are_those_of_serving_in_order(data):
    preprocessing = Preprocessing(input_px=64)
    batches = list(evaluation_batches(*data, preprocessing, batch_size=7, num_workers=0))
    assert torch.cat([b.rows for b in batches]).tolist() == list(range(len(data[0])))
    served = prepare_photo(photo_bytes(data[0].photo_url(9)), preprocessing)
    assert np.array_equal(batches[1].photos_nhwc[2].numpy(), served)


@pytest.fixture
def with_a_bad_photo(data, tmp_path):
    """The training rows with row 6 broken and row 9 gone."""
    rows = data[0].table.to_pylist()
    rows = [{**row, "photo": data[0].photo_url(i)} for i, row in enumerate(rows)]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    rows[5]["photo"], rows[8]["photo"] = str(tmp_path / "broken.jpg"), str(tmp_path / "gone.jpg")
    return Manifest.from_rows(rows, ""), data[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_photos_are_replaced_and_named(with_a_bad_photo, small_recipe, num_workers):
    loader, _ = batches_of(with_a_bad_photo, small_recipe, num_workers=num_workers)
    problems = [json.loads(p) for batch in loader for p in batch.problems if p]
    assert {(p["row"], p["reason"]) for p in problems} == {(6, "PHOTO_TRUNCATED"), (9, "PHOTO_MISSING")}
    assert all(p["photo"].endswith(("broken.jpg", "gone.jpg")) and p["replaced_by_row"] not in (6, 9) for p in problems)


def test_a_replacement_brings_its_own_labels(with_a_bad_photo, small_recipe):
    labels = with_a_bad_photo[1]
    for batch in batches_of(with_a_bad_photo, small_recipe)[0]:
        assert batch.category_nodes.tolist() == labels.category_nodes[batch.rows].tolist()
        assert not {5, 8} & set(batch.rows.tolist())


def test_when_nothing_can_be_read_the_photo_is_named(data, small_recipe, tmp_path):
    rows = [{**row, "photo": f"{tmp_path}/gone.jpg"} for row in data[0].table.to_pylist()]
    loader, _ = batches_of((Manifest.from_rows(rows, ""), data[1]), small_recipe)
    with pytest.raises(RunError, match=r"gone\.jpg cannot be used .*nor can 10 others.*data check"):
        next(iter(loader))


def test_too_few_photos_for_a_batch(data, small_recipe):
    few = data[0].take(np.arange(3))
    with pytest.raises(RunError, match="3 training photos do not fill one batch of 16"):
        Draws(few, data[1], small_recipe)
