"""Recipes for large pre-trained backbones: their structure as it is, the rest on small networks of the same kind."""

import asyncio
import dataclasses

import pytest
import torch

from serving.inference.health import wait_for_golden_photos
from serving.inference.triton import TritonEngine
from serving.triton.config import RepositoryOptions
from serving.triton.process import LocalTriton
from tests.support.helpers import create_trainer
from training.export.export import export_bundle
from training.inference.pretrained import check_photo_sizes
from training.recipe import Stage, load_recipe
from training.run import Run
from training.trainer.optimizer import build_parameter_groups, list_layer_groups
from vision.model import ListingClassifier, ModelSpec, create_timm_backbone

SMALL = {"dinov2_small": "test_vit", "convnext_base": "test_convnext"}


@pytest.mark.parametrize("name", [*SMALL, "siglip2_base"])
def test_layers_learn_the_faster_the_nearer_they_are_to_the_heads(name):
    recipe = load_recipe(name)
    with torch.device("meta"):  # no memory and no time for 90 million weights
        backbone = create_timm_backbone(recipe.backbone, drop_path_rate=recipe.drop_path)
        spec = ModelSpec(backbone=recipe.backbone, num_categories=3, num_brands=2, mean=(0.5,) * 3, std=(0.5,) * 3)
        model = ListingClassifier(spec, backbone)
    check_photo_sizes(backbone, recipe.backbone, [recipe.input_px, *(stage.photo_px for stage in recipe.stages)])
    backbone.set_grad_checkpointing(recipe.activation_checkpointing)
    groups = build_parameter_groups(
        model,
        head_learning_rate=recipe.head_learning_rate,
        backbone_learning_rate=recipe.backbone_learning_rate,
        layer_decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
    )
    rates = {id(p): group["lr"] * group["lr_scale"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    layers = list_layer_groups(backbone)
    by_layer = [rates[id(backbone.get_parameter(names[0]))] for names in layers]
    depth = len(layers) - 1
    assert by_layer[-1] == pytest.approx(recipe.backbone_learning_rate)
    assert by_layer[0] == pytest.approx(recipe.backbone_learning_rate * recipe.layer_decay**depth)
    assert by_layer == sorted(by_layer)
    assert rates[id(model.category_head.weight)] == pytest.approx(recipe.head_learning_rate)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_resumes_is_exported_with_equal_logits_and_served(name, synthetic_dataset, triton_installation, tmp_path):
    stages = (Stage(photo_px=32, epochs=1, trains="heads"), Stage(photo_px=32, epochs=1), Stage(photo_px=48, epochs=1))
    recipe = dataclasses.replace(
        load_recipe(name), backbone=SMALL[name], weights="none", stages=stages, input_px=48, batch_size=16
    )
    first = create_trainer(tmp_path / "run", synthetic_dataset, recipe)
    first.stop()
    first.run()
    assert first.interrupted
    create_trainer(tmp_path / "run", synthetic_dataset, recipe).run()
    bundle = export_bundle(Run(tmp_path / "run"), tmp_path / "bundle", model_name=name)
    assert bundle.info.backbone == SMALL[name]
    for export in ("onnx", "torchscript"):
        assert max(bundle.info.parity[export]["max_abs_difference"].values()) < 1e-3
    serve_golden_photos(bundle, triton_installation)


def serve_golden_photos(bundle, installation):
    """Wait until a Triton answers with the exported model's logits."""

    async def ask(address):
        engine = TritonEngine(address)
        try:
            await wait_for_golden_photos(engine, bundle)
        finally:
            await engine.close()

    triton = LocalTriton(bundle, installation, RepositoryOptions(backend="python"))
    triton.start()
    try:
        triton.wait_until_listening()
        asyncio.run(ask(triton.address))
    finally:
        triton.stop()
