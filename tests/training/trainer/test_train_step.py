import numpy as np
import pytest
import torch

from tests.support.helpers import create_small_taxonomy
from training.recipe import Recipe, Stage
from training.trainer.distributed import Ranks
from training.trainer.hardware import Machine
from training.trainer.loading.dataloader import Batch
from training.trainer.losses import NumLabelled
from training.trainer.train_step import TrainStep
from vision.manifest import Labels


@pytest.mark.parametrize("trains", ["all", "heads"])
def test_a_stage_changes_the_heads_and_the_backbone_only_where_it_trains_all(trains):
    stage = Stage(photo_px=32, epochs=1, trains=trains)
    nodes, brands = np.ones(8, np.int64), np.zeros(8, np.int64)
    train_step = TrainStep(
        Recipe(stages=(stage,), backbone="test_efficientnet", weights="none", batch_size=8),
        taxonomy=create_small_taxonomy(),
        train_labels=Labels(category_nodes=nodes, brands=brands),
        machine=Machine(),
        ranks=Ranks(device=torch.device("cpu")),
    )
    before = {name: parameter.detach().clone() for name, parameter in train_step.model.named_parameters()}
    photos = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    rows = torch.arange(8)
    batch = Batch(photos, torch.from_numpy(nodes), torch.from_numpy(brands), rows, rows, [""] * 8)
    train_step.run(0, stage, [batch], NumLabelled.from_labels(nodes, brands)).read()
    changed = {name for name, value in train_step.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(not name.startswith("backbone.") for name in changed)
    assert any(name.startswith("backbone.") for name in changed) == (trains == "all")
