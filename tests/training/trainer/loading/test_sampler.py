import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import RunError
from training.recipe import Recipe, Stage
from training.trainer.loading.sampler import ResumableBatchSampler
from vision.manifest import Labels, Manifest


def create_manifest(photos):
    return Manifest.from_rows([{"listing_id": f"l{i}", "photo": photo} for i, photo in enumerate(photos)], "")


def files(num):
    return create_manifest([f"{i}.jpg" for i in range(num)])


def create_labels(nodes):
    nodes = np.asarray(nodes, dtype=np.int64)
    return Labels(category_nodes=nodes, brands=np.full(len(nodes), -1))


def recipe(batch_size, epochs=2, **more):
    return Recipe(stages=(Stage(photo_px=32, epochs=epochs),), batch_size=batch_size, **more)


def rows(draws):
    return [[draw.row for draw in batch] for batch in draws]


@given(
    num=st.integers(8, 60),
    batch_size=st.integers(6, 8),
    world_size=st.integers(1, 3),
    micro_batch=st.one_of(st.none(), st.integers(2, 4)),
    first_step=st.integers(0, 2),
)
def test_the_ranks_share_every_step_without_overlap(num, batch_size, world_size, micro_batch, first_step):
    made = recipe(batch_size)
    labels = create_labels(np.zeros(num))
    whole = ResumableBatchSampler(files(num), labels, made)
    ranks = [
        ResumableBatchSampler(
            files(num), labels, made, rank=r, world_size=world_size, micro_batch=micro_batch, first_step=first_step
        )
        for r in range(world_size)
    ]
    per_step = ranks[0].micro_batches_per_step
    drawn = [rows(rank) for rank in ranks]
    assert {len(batches) for batches in drawn} == {len(ranks[0])}
    assert all(len(batch) >= 2 for batches in drawn for batch in batches)
    for index, step in enumerate(range(first_step, whole.num_steps)):
        together = [row for b in drawn for part in b[index * per_step : (index + 1) * per_step] for row in part]
        assert sorted(together) == sorted(whole.get_step_rows(step))
    for epoch in range(2):
        steps = range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch)
        seen = np.concatenate([whole.get_step_rows(step) for step in steps])
        assert sorted(seen) == list(range(num))


def test_a_micro_batch_is_no_larger_than_asked():
    draws = ResumableBatchSampler(files(64), create_labels(np.zeros(64)), recipe(32), micro_batch=10)
    assert draws.micro_batches_per_step == 4
    assert {len(batch) for batch in draws} == {8}


def test_epochs_are_in_different_orders_and_a_seed_repeats_them():
    labels = create_labels(np.zeros(32))
    one, same = (ResumableBatchSampler(files(32), labels, recipe(8)) for _ in range(2))
    assert rows(one) == rows(same)
    assert rows(one)[:4] != rows(one)[4:]
    seeds = [draw.seed for batch in one for draw in batch]
    assert len(set(seeds)) == len(seeds)
    assert rows(ResumableBatchSampler(files(32), labels, recipe(8, seed=1))) != rows(one)


def test_too_many_ranks_are_refused():
    with pytest.raises(RunError, match="batch_size 8 leaves 1 photos for each of 5 ranks"):
        ResumableBatchSampler(files(32), create_labels(np.zeros(32)), recipe(8), world_size=5)


def test_balanced_sampling_draws_rare_classes_as_often():
    nodes = np.array([0] * 900 + [1] * 90 + [2] * 9 + [-1])
    drawn = nodes[
        np.concatenate(
            rows(ResumableBatchSampler(files(1000), create_labels(nodes), recipe(100, epochs=5, balanced_sampling=1)))
        )
    ]
    shares = [(drawn == node).mean() for node in range(3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)
    drawn = nodes[np.concatenate(rows(ResumableBatchSampler(files(1000), create_labels(nodes), recipe(100, epochs=5))))]
    assert (drawn == 0).mean() == pytest.approx(0.9)


def test_photos_in_shards_come_a_few_shards_at_a_time_and_each_once():
    num_shards, per_shard = 64, 10
    photos = [f"shard-{i:06d}.tar#{j * 100}+50" for i in range(num_shards) for j in range(per_shard)]
    draws = ResumableBatchSampler(create_manifest(photos), create_labels(np.zeros(len(photos))), recipe(8, epochs=1))
    drawn = np.concatenate(rows(draws))
    assert sorted(drawn) == list(range(640))
    quarter = drawn[:160] // per_shard
    assert len(np.unique(quarter)) == 16
    assert len(np.unique(quarter[:16])) > 4
