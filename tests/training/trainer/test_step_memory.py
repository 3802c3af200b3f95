import logging

import pytest
import torch

from training.errors import RunError
from training.inference.pretrained import create_backbone
from training.recipe import Recipe, Stage
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from training.trainer.step_memory import (
    choose_micro_batch,
    fit_micro_batch,
    measure_bytes_per_photo,
    suggest_smaller_batch,
)
from vision.model import ListingClassifier, ModelSpec

RECIPE = Recipe(stages=(Stage(photo_px=64, epochs=1),), backbone="test_efficientnet", weights="none", batch_size=32)
CPU = Ranks(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def model():
    spec = ModelSpec(backbone="test_efficientnet", num_categories=3, num_brands=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    return ListingClassifier(spec, create_backbone("test_efficientnet", "none"))


def test_activations_grow_with_the_area_and_the_model_is_as_before(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, large = (measure_bytes_per_photo(model, side) for side in (64, 128))
    assert large == pytest.approx(4 * small, rel=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_of_a_batch_is_tried_until_it_fits(model, caplog):
    plenty = 2**40
    assert fit_micro_batch(model, RECIPE, share=32, available=plenty) == 32
    assert not caplog.messages
    per_photo = 1.4 * measure_bytes_per_photo(model, 64)
    weights = 5 * sum(p.numel() * 4 for p in model.parameters())
    with caplog.at_level(logging.WARNING):
        assert fit_micro_batch(model, RECIPE, share=32, available=int(weights + 9 * per_photo)) == 8
    assert "8 photos at once (--micro-batch 8)" in caplog.text
    with pytest.raises(RunError, match=r"test_efficientnet at 64 px needs about .* for two photos"):
        fit_micro_batch(model, RECIPE, share=32, available=int(weights + per_photo))


def test_a_probe_of_features_needs_no_room_for_activations(model):
    probe = Recipe(stages=(Stage(photo_px=64, epochs=1, trains="heads_on_features"),))
    assert fit_micro_batch(model, probe, share=32, available=1) == 32


@pytest.mark.parametrize(("told", "available", "chosen"), [(5, 1, 5), (None, 2**40, None), (None, None, None)])
def test_what_the_machine_is_told_goes_first(model, monkeypatch, told, available, chosen):
    monkeypatch.setattr("training.trainer.step_memory.measure_available_memory", lambda: available)
    assert choose_micro_batch(Machine(micro_batch=told), model, RECIPE, CPU) == chosen


def test_out_of_memory_is_answered_with_the_size_to_try():
    with (
        pytest.raises(RunError, match="does not hold 64 photos at once; try --micro-batch 32"),
        suggest_smaller_batch(64),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
