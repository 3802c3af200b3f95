import pytest
import timm
import torch

from tests.support.helpers import create_trainer, train_run
from training.errors import RecipeError
from training.recipe import Recipe, Stage
from training.run import Run
from training.trainer.optimizer import build_parameter_groups, find_frozen_modules, freeze_groups, list_layer_groups
from vision.model import ListingClassifier, ModelSpec

TINY = {"backbone": "test_efficientnet", "weights": "none"}


def classifier(backbone):
    spec = ModelSpec(backbone=backbone, num_categories=4, num_brands=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return ListingClassifier(spec)


@pytest.mark.parametrize(
    ("backbone", "num_groups"), [("tf_efficientnet_lite0", 8), ("convnext_atto", 6), ("vit_tiny_patch16_224", 13)]
)
def test_every_parameter_is_in_one_group_from_photo_to_features(backbone, num_groups):
    model = timm.create_model(backbone, num_classes=0)
    groups = list_layer_groups(model)
    assert len(groups) == num_groups
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert next(iter(dict(model.named_parameters()))) in groups[0]


def test_frozen_groups_keep_their_weights_and_their_statistics(synthetic_dataset, tmp_path):
    recipe = Recipe(stages=(Stage(photo_px=48, epochs=1),), input_px=64, batch_size=16, **TINY, frozen_groups=3)
    before = timm_state(recipe)
    run = train_run(tmp_path / "run", synthetic_dataset, recipe)
    after = run.load_model().backbone.state_dict()
    frozen = [name for name in after if name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1"))]
    assert len(frozen) > 10
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    moved = [name for name in after if name.startswith("blocks.2") and not torch.equal(after[name], before[name])]
    assert any("running_mean" in name for name in moved)
    assert any("weight" in name for name in moved)


def timm_state(recipe):
    from training.inference.pretrained import create_backbone

    torch.manual_seed(recipe.seed)
    return create_backbone(recipe.backbone, recipe.weights).state_dict()


def test_a_stage_of_heads_leaves_the_backbone_alone_and_the_next_one_does_not(synthetic_dataset, tmp_path):
    heads = Stage(photo_px=48, epochs=1, trains="heads")
    only_heads = Recipe(stages=(heads,), input_px=64, batch_size=16, **TINY, ema_decay=0)
    before = timm_state(only_heads)
    after = train_run(tmp_path / "heads", synthetic_dataset, only_heads).load_model()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.backbone.state_dict().items())
    both = Recipe(stages=(heads, Stage(photo_px=48, epochs=1)), input_px=64, batch_size=16, **TINY, ema_decay=0)
    after = train_run(tmp_path / "both", synthetic_dataset, both).load_model()
    assert not torch.equal(after.backbone.get_parameter("conv_stem.weight"), before["conv_stem.weight"])


def test_modules_without_a_trained_parameter_are_the_frozen_ones():
    model = classifier("tf_efficientnet_lite0")
    assert find_frozen_modules(model) == []
    freeze_groups(model.backbone, 2)
    frozen = find_frozen_modules(model)
    assert model.backbone.bn1 in frozen
    assert model.backbone.blocks[0] in frozen
    assert model.backbone.blocks[1] not in frozen


def test_more_groups_than_there_are_is_refused():
    with pytest.raises(RecipeError, match="frozen_groups = 9: this backbone has 8 layer groups"):
        freeze_groups(classifier("tf_efficientnet_lite0").backbone, 9)


def test_rates_fall_towards_the_photo_and_every_trained_parameter_has_one():
    model = classifier("tf_efficientnet_lite0")
    freeze_groups(model.backbone, 1)
    groups = build_parameter_groups(
        model, head_learning_rate=1.0, backbone_learning_rate=0.1, layer_decay=0.5, weight_decay=0.05
    )
    rates = {id(p): group["lr"] * group["lr_scale"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    assert set(rates) == {id(p) for p in model.parameters() if p.requires_grad}
    backbone = model.backbone
    assert rates[id(backbone.blocks[6][0].conv_pw.weight)] == pytest.approx(0.1)
    assert rates[id(backbone.blocks[5][0].conv_pw.weight)] == pytest.approx(0.05)
    assert rates[id(backbone.blocks[0][0].conv_pw.weight)] == pytest.approx(0.1 * 0.5**6)
    assert rates[id(model.brand_head.weight)] == pytest.approx(1.0)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert id(backbone.blocks[6][0].bn1.weight) not in decayed
    assert id(model.brand_head.bias) not in decayed
    assert id(model.brand_head.weight) in decayed


def test_scale_and_bias_of_a_cosine_head_learn_as_heads_and_are_not_decayed():
    spec = ModelSpec(
        backbone="test_efficientnet", num_categories=4, num_brands=3, mean=(0.5,) * 3, std=(0.5,) * 3,
        brand_head="cosine",
    )  # fmt: skip
    head = (model := ListingClassifier(spec)).brand_head
    groups = build_parameter_groups(
        model, head_learning_rate=1.0, backbone_learning_rate=0.1, layer_decay=1.0, weight_decay=0.05
    )
    found = {
        id(p): (group["lr"] * group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert found[id(head.log_scale)] == found[id(head.bias)] == (pytest.approx(1.0), 0)
    assert found[id(head.weight)] == (pytest.approx(1.0), 0.05)


def test_a_run_of_frozen_layers_resumes(synthetic_dataset, tmp_path):
    recipe = Recipe(
        stages=(Stage(photo_px=48, epochs=1, trains="heads"), Stage(photo_px=48, epochs=1)),
        input_px=64,
        batch_size=16,
        **TINY,
        frozen_groups=3,
        checkpoint_every_steps=3,
    )
    whole = train_run(tmp_path / "whole", synthetic_dataset, recipe)
    trainer = create_trainer(tmp_path / "broken", synthetic_dataset, recipe)
    trainer.stop()
    trainer.run()
    assert not Run(tmp_path / "broken").finished
    broken = train_run(tmp_path / "broken", synthetic_dataset, recipe)
    one, other = whole.load_model().state_dict(), broken.load_model().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
