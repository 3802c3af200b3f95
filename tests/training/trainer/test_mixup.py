import numpy as np
import pytest
import torch

from training.recipe import Recipe, Stage
from training.trainer.mixup import mix_photos


def recipe(**changes):
    return Recipe(stages=(Stage(photo_px=32, epochs=1),), **changes)


PHOTOS = torch.arange(6, dtype=torch.uint8).mul(40).view(6, 1, 1, 1).expand(6, 32, 32, 3).contiguous()


def test_off_is_off():
    photos, mix = mix_photos(PHOTOS, recipe(), seed=0)
    assert photos is PHOTOS
    assert mix is None


@pytest.mark.parametrize("seed", range(20))
def test_mixup_blends_by_the_share(seed):
    photos, mix = mix_photos(PHOTOS, recipe(mixup_alpha=1.0), seed=seed)
    wanted = mix.share * PHOTOS.float() + (1 - mix.share) * PHOTOS[mix.partners].float()
    torch.testing.assert_close(photos, wanted)
    assert sorted(mix.partners.tolist()) == list(range(6))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_shares_are_the_areas(seed):
    photos, mix = mix_photos(PHOTOS, recipe(cutmix_alpha=1.0), seed=seed)
    assert photos.dtype == torch.uint8
    for index in range(6):
        own, partner = PHOTOS[index, 0, 0, 0], PHOTOS[mix.partners[index], 0, 0, 0]
        if own != partner:
            assert (photos[index, ..., 0] == own).float().mean().item() == pytest.approx(mix.share)
            assert set(np.unique(photos[index])) <= {int(own), int(partner)}


def test_a_seed_repeats_and_both_kinds_come_up():
    both = recipe(mixup_alpha=0.2, cutmix_alpha=1.0)
    one, other = (mix_photos(PHOTOS, both, seed=5)[0] for _ in range(2))
    assert torch.equal(one, other)
    assert {mix_photos(PHOTOS, both, seed=seed)[0].dtype for seed in range(20)} == {torch.uint8, torch.float32}
