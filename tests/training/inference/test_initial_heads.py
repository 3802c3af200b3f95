"""Training that begins with a bundle: rows of its heads go to the classes that are still there, by id."""

import dataclasses
import logging

import pytest
import safetensors.torch
import torch

from tests.support.helpers import create_small_taxonomy
from training.data.taxonomy_changes import MigrationMap, plan_migration
from training.errors import RecipeError, RunError
from training.export.migrate_bundle import migrate_bundle
from training.inference.initial_heads import carry_over_heads, load_initial_bundle
from training.inference.network import load_bundle_model
from training.recipe import Stage
from training.run import Run
from training.trainer.hardware import Machine
from training.trainer.training_loop import TrainingLoop
from vision.manifest import Manifest
from vision.model import ListingClassifier, ModelSpec
from vision.taxonomy import Brand, Category, Taxonomy

SMALL = create_small_taxonomy()
"""Leaves gala, fuji, lemon, tools; brands acme, zeta."""


def change(taxonomy, version, *, without=(), categories=(), brands=()):
    return dataclasses.replace(
        taxonomy,
        version=version,
        categories=(
            *(Category(id=id_, names={"en": id_.title()}, parent_id=parent) for id_, parent in categories),
            *(c for c in taxonomy.categories if c.id not in without),
        ),
        brands=(*(Brand(id=id_, names={"en": id_.title()}) for id_ in brands), *taxonomy.brands),
    )


@pytest.mark.parametrize("brand_head", ["linear", "cosine"])
def test_rows_go_by_id_and_new_classes_keep_their_own(brand_head, bundle, tmp_path):
    new = change(SMALL, "small-2", without=("gala",), categories=[("plum", "fruit")], brands=["omega"])
    torch.manual_seed(0)
    theirs, model = (
        ListingClassifier(
            ModelSpec(
                backbone="test_efficientnet",
                num_categories=len(taxonomy.leaf_ids),
                num_brands=len(taxonomy.brand_labels),
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                brand_head=brand_head,
            )
        ).eval()
        for taxonomy in (SMALL, new)
    )
    if brand_head == "cosine":
        theirs.brand_head.running_mean.normal_()
        theirs.brand_head.log_scale.data.fill_(1.0)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    info = dataclasses.replace(bundle.info, training={"never_trained": {"category": ["lemon"], "brand": ["zeta"]}})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    carried = carry_over_heads(model, dataclasses.replace(bundle, folder=tmp_path, taxonomy=SMALL, info=info), new)
    assert carried.carried == ("fuji", "tools", "acme")
    assert carried.initialised == ("plum", "lemon", "omega", "zeta")
    assert carried.left_behind == ("gala",)
    assert str(carried) == ("3 rows carried over; 4 initialised as new: plum, lemon, omega, zeta; 1 left behind: gala")
    embedding = torch.randn(5, model.category_head.in_features)
    here, there = model.apply_heads(embedding), theirs.apply_heads(embedding)
    for leaf in ("fuji", "tools"):
        torch.testing.assert_close(
            here.category_logits[:, new.leaf_ids.index(leaf)], there.category_logits[:, SMALL.leaf_ids.index(leaf)]
        )
    torch.testing.assert_close(here.brand_logits[:, [0, 2]], there.brand_logits[:, [0, 1]])  # no brand, acme
    for head, rows in (("category", [new.leaf_ids.index("plum"), new.leaf_ids.index("lemon")]), ("brand", [1, 3])):
        for name in ("weight", "bias"):
            key = f"{head}_head.{name}"
            assert torch.equal(model.state_dict()[key][rows], before[key][rows])


@pytest.fixture(scope="module")
def migrated(bundle, synthetic_dataset, tmp_path_factory):
    """A bundle migrated twice, and the manifest: a leaf and a brand were added, the leaf renamed, another retired."""
    folder = tmp_path_factory.mktemp("migrated")
    old = bundle.taxonomy
    root, retired = old.get_lineage(old.leaf_ids[0])[0].id, old.leaf_ids[-1]
    grown = change(old, "grown", categories=[("plum", root)], brands=["omega"])
    first = plan_migration(old, grown, MigrationMap())
    now = change(grown, "now", without=("plum", retired), categories=[("prune", root)])
    second = plan_migration(grown, now, MigrationMap(categories={"plum": ("prune",), retired: ()}))
    once = migrate_bundle(bundle, first, folder / "once")
    twice = migrate_bundle(once.bundle, second, folder / "twice")
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    for migration in (first, second):
        rows, _ = migration.migrate(rows)
    rows = Manifest.from_rows([row for row in rows.table.to_pylist() if row["category"]], rows.base_url)
    rows.rebase(str(folder)).save(str(folder / "manifest.parquet"))
    assert twice.added == ("prune", "omega")
    return twice.bundle


def create_loop(bundle, recipe, run) -> TrainingLoop:
    url = str(bundle.folder.parent / "manifest.parquet")
    return TrainingLoop(
        recipe,
        manifest_url=url,
        manifest=Manifest.load(url),
        taxonomy=bundle.taxonomy,
        run=Run(run),
        machine=Machine(num_workers=0),
    )


def test_training_begins_where_a_migrated_bundle_ended(migrated, small_recipe, tmp_path, caplog):
    fresh = dataclasses.replace(small_recipe, stages=(Stage(photo_px=48, epochs=1),))
    recipe = dataclasses.replace(fresh, weights=str(migrated.folder))
    loop = create_loop(migrated, recipe, tmp_path / "run")
    usual = create_loop(migrated, fresh, tmp_path / "usual").train_step.model
    photos = torch.from_numpy(migrated.golden.photos_nhwc)
    taxonomy: Taxonomy = migrated.taxonomy
    with torch.inference_mode():
        here, there = (model.eval()(photos) for model in (loop.train_step.model, load_bundle_model(migrated)))
    kept = [row for row, id_ in enumerate(taxonomy.leaf_ids) if id_ != "prune"]
    (new,) = set(range(len(taxonomy.leaf_ids))) - set(kept)
    torch.testing.assert_close(here.category_logits[:, kept], there.category_logits[:, kept])
    trained_brands = [row for row, label in enumerate(taxonomy.brand_labels) if label != "Omega"]
    torch.testing.assert_close(here.brand_logits[:, trained_brands], there.brand_logits[:, trained_brands])
    # What the migration made up is not taken: these rows are what a head begins with anywhere.
    for head, row in (("category_head", new), ("brand_head", 1)):
        weight = getattr(loop.train_step.model, head).weight
        assert torch.equal(weight[row], getattr(usual, head).weight[row])
        assert not torch.equal(weight[row], getattr(load_bundle_model(migrated), head).weight[row])

    with caplog.at_level(logging.INFO):
        loop.run()
    num = len(taxonomy.leaf_ids) + len(taxonomy.brands) - 2
    assert (
        f"heads of {migrated.folder}: {num} rows carried over; 2 initialised as new: prune, omega; 0 left"
        in caplog.text
    )
    settings = Run(tmp_path / "run").read_settings()
    assert settings["weights_version"] == migrated.info.model_version
    with pytest.raises(RunError, match="holds a run with another weights_version"):
        Run(tmp_path / "run").begin(
            recipe=recipe,
            manifest_url="",
            manifest=Manifest.load(settings["manifest"]),
            taxonomy=taxonomy,
            spec=loop.train_step.spec,
            models={"weights_version": "another"},
        )


def test_a_bundle_that_does_not_suit_the_recipe_is_refused_by_name(bundle, small_recipe, tmp_path, monkeypatch):
    recipe = dataclasses.replace(small_recipe, weights=str(bundle.folder))
    for field, asked, there in (("backbone", "resnet10t", "test_efficientnet"), ("brand_head", "cosine", "linear")):
        with pytest.raises(RecipeError, match=f"small .* has the {field} {there}, and the recipe {asked}; use --set"):
            load_initial_bundle(dataclasses.replace(recipe, **{field: asked}))
    half = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, precision="fp16"))
    monkeypatch.setattr("training.inference.initial_heads.load_bundle", lambda folder: half)
    with pytest.raises(RecipeError, match="is in fp16; use the fp32 bundle that it was made from"):
        load_initial_bundle(recipe)
