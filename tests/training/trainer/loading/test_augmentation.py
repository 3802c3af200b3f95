import numpy as np
import pytest
import torch

from tests.support.helpers import create_scene
from training.recipe import Recipe, Stage
from training.trainer.loading.augmentation import CHANGES, apply_change, distort_batch


def recipe(**changes):
    return Recipe(stages=(Stage(photo_px=48, epochs=1),), **changes)


@pytest.fixture
def photos():
    photo = torch.from_numpy(np.asarray(create_scene(48, 48)).copy()).permute(2, 0, 1)
    return photo.repeat(24, 1, 1, 1)


def test_nothing_asked_for_changes_nothing(photos):
    plain = recipe(flip_probability=0, trivial_augment=False, erasing_probability=0)
    assert torch.equal(distort_batch(photos, plain, seeds=range(24)), photos)


def test_flips_are_mirror_images(photos):
    flipped = distort_batch(
        photos, recipe(flip_probability=1, trivial_augment=False, erasing_probability=0), seeds=range(24)
    )
    assert torch.equal(flipped, photos.flip(3))


def test_a_photo_is_changed_by_its_own_seed_whoever_is_in_the_batch(photos):
    everything = recipe(erasing_probability=0.5)
    before = photos.clone()
    together = distort_batch(photos, everything, seeds=range(100, 124))
    assert torch.equal(photos, before)
    assert together.dtype == torch.uint8
    alone = torch.cat([distort_batch(photos[:1], everything, seeds=[seed]) for seed in range(100, 124)])
    assert torch.equal(together, alone)
    assert len({bytes(photo.numpy().tobytes()) for photo in together}) > 15


def test_erasing_greys_a_part_of_the_named_size(photos):
    erased = distort_batch(
        photos, recipe(flip_probability=0, trivial_augment=False, erasing_probability=1), seeds=range(24)
    )
    shares = (erased == 127).all(dim=1).float().mean(dim=(1, 2))
    assert ((shares > 0.01) & (shares < 0.23)).all()


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in ("Identity", "Equalize", "AutoContrast")])
def test_changes_of_no_strength_change_nothing_and_of_full_strength_do(change):
    photos = torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_change(photos, change, 0.0), photos)
    assert not torch.equal(apply_change(photos, change, CHANGES[change][0]), photos)


def test_geometry_moves_as_pillow_counts_and_leaves_grey_behind(photos):
    moved = apply_change(photos[:1], "TranslateX", 8)
    assert torch.equal(moved[..., 8:], photos[:1, ..., :-8])
    assert (moved[..., :8] == 127).all()
