import pytest
import timm
import torch

from tests.support.helpers import create_trainer, train_run
from training.errors import RecipeError
from training.export.export import export_bundle
from training.inference.lora import add_low_rank, merge_low_rank
from training.inference.pretrained import create_backbone
from training.recipe import Recipe, Stage
from training.run import Run
from training.trainer.optimizer import list_layer_groups

RECIPE = Recipe(
    stages=(Stage(photo_px=32, epochs=1, trains="heads"), Stage(photo_px=32, epochs=2)),
    input_px=32,
    batch_size=16,
    backbone="test_vit",
    weights="none",
    lora_rank=2,
    backbone_learning_rate=1e-2,
    ema_decay=0.0,
    checkpoint_every_steps=3,
)


@pytest.fixture(scope="module")
def run(synthetic_dataset, tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("lora") / "run", synthetic_dataset, RECIPE)


def test_a_backbone_is_the_same_until_its_products_learn_and_merges_to_plain_weights():
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=0).eval()
    photos = torch.randn(2, 3, 160, 160)
    before = backbone(photos)
    names = set(backbone.state_dict())
    add_low_rank(backbone, 4, "test_vit")
    torch.testing.assert_close(backbone(photos), before)
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.endswith((".down", ".up")) for name in learning)
    # Every product belongs to the layer group of its weight.
    assert {name for group in list_layer_groups(backbone) for name in group} >= learning
    with torch.no_grad():
        for name in learning:
            backbone.get_parameter(name).normal_(std=0.1)
    changed = backbone(photos)
    assert not torch.allclose(changed, before)
    merged = merge_low_rank(backbone)
    assert set(merged) == names
    plain = timm.create_model("test_vit", num_classes=0).eval()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(photos), changed)


def test_linear_layers_learn_at_that_rank_and_nothing_else_of_the_backbone_does(run):
    torch.manual_seed(RECIPE.seed)
    before = create_backbone(RECIPE.backbone, RECIPE.weights).state_dict()
    after = run.load_model().backbone.state_dict()
    assert set(after) == set(before)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    kinds = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert all(name.endswith(kinds) for name in moved)
    for name in moved:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-4) <= RECIPE.lora_rank


def test_a_resumed_run_ends_with_equal_weights(run, synthetic_dataset, tmp_path):
    first = create_trainer(tmp_path / "run", synthetic_dataset, RECIPE)
    first.stop()
    first.run()
    assert first.interrupted
    create_trainer(tmp_path / "run", synthetic_dataset, RECIPE).run()
    resumed, unbroken = (one.load_model().state_dict() for one in (Run(tmp_path / "run"), run))
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def test_a_run_is_exported_like_any_other(run, tmp_path):
    parity = export_bundle(run, tmp_path / "bundle", model_name="lora").info.parity
    for name in ("onnx", "torchscript"):
        assert max(parity[name]["max_abs_difference"].values()) < 1e-3


@pytest.mark.parametrize(("backbone", "rank"), [("test_efficientnet", 4), ("test_vit", 10_000)])
def test_a_backbone_without_such_layers_is_refused(backbone, rank):
    with pytest.raises(RecipeError, match=f"lora_rank = {rank}: {backbone} has no linear layer"):
        add_low_rank(timm.create_model(backbone, num_classes=0), rank, backbone)
