import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.support.helpers import create_small_taxonomy
from training.data.taxonomy_changes import MigrationMap, plan_migration
from training.export.migrate_bundle import (
    LabelSources,
    find_brand_sources,
    find_leaf_sources,
    migrate_bundle,
    migrate_heads,
)
from training.inference.forward import onnx_forward
from vision.errors import BundleError
from vision.model import ListingClassifier, ModelSpec
from vision.taxonomy import Brand, Category, Taxonomy

OLD = create_small_taxonomy()
"""Leaves gala, fuji, lemon, tools; brands acme, zeta."""


def create_taxonomy(tree, brands=("acme", "zeta")):
    return Taxonomy(
        version="small-2",
        categories=tuple(Category(id=i, names={"en": i.title()}, parent_id=p) for i, p in tree),
        brands=tuple(Brand(id=id_, names={"en": id_.title()}) for id_ in brands),
    )


def plan(tree, categories=(), *, brands=("acme", "zeta"), brand_map=()):
    return plan_migration(
        OLD, create_taxonomy(tree, brands), MigrationMap(categories=dict(categories), brands=dict(brand_map))
    )


SPLIT_AND_MERGED = plan(
    [("fruit", None), ("apple", "fruit"), ("lime", "fruit"), ("citron", "fruit"), ("toys", None), ("tools", None)],
    {"gala": ("apple",), "fuji": ("apple",), "lemon": ("lime", "citron")},
    brands=("new", "acme-inc"),
    brand_map={"acme": ("acme-inc",), "zeta": ("acme-inc",)},
)


def test_each_new_leaf_knows_what_it_is_made_of():
    assert dict(zip(SPLIT_AND_MERGED.new.leaf_ids, find_leaf_sources(SPLIT_AND_MERGED), strict=True)) == {
        "apple": LabelSources((0, 1), (1, 1)),
        "lime": LabelSources((2,), (2,)),
        "citron": LabelSources((2,), (2,)),
        "toys": LabelSources((), ()),
        "tools": LabelSources((3,), (1,)),
    }
    assert find_brand_sources(SPLIT_AND_MERGED) == [
        LabelSources((0,), (1,)),
        LabelSources((), ()),
        LabelSources((1, 2), (1, 1)),
    ]


def test_a_leaf_that_becomes_an_inner_node_is_shared_by_its_leaves():
    deeper = plan([*((c.id, c.parent_id) for c in OLD.categories), ("hammer", "tools"), ("saw", "tools")])
    sources = dict(zip(deeper.new.leaf_ids, find_leaf_sources(deeper), strict=True))
    assert sources["hammer"] == sources["saw"] == LabelSources((3,), (2,))


def test_an_inner_node_that_becomes_a_leaf_takes_what_was_below_it():
    shallower = plan(
        [("fruit", None), ("apple", "fruit"), ("lemon", "fruit"), ("tools", None)], {"gala": (), "fuji": ()}
    )
    assert find_leaf_sources(shallower)[0] == LabelSources((0, 1), (1, 1))


@pytest.mark.parametrize("brand_head", ["linear", "cosine"])
def test_heads_keep_split_merge_and_begin_rows(brand_head):
    torch.manual_seed(0)
    spec = ModelSpec(
        backbone="test_efficientnet",
        num_categories=4,
        num_brands=3,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        brand_head=brand_head,
    )
    model = ListingClassifier(spec).eval()
    migrated = migrate_heads(model, find_leaf_sources(SPLIT_AND_MERGED), find_brand_sources(SPLIT_AND_MERGED))
    embedding = torch.randn(500, model.category_head.in_features)
    with torch.inference_mode():
        before, after = model.apply_heads(embedding), migrated.apply_heads(embedding)
    gala, fuji, lemon, tools = before.category_logits.unbind(dim=1)
    apple, lime, citron, toys, same_tools = after.category_logits.unbind(dim=1)
    assert torch.equal(migrated.category_head.weight[4], model.category_head.weight[3])
    torch.testing.assert_close(same_tools, tools)
    torch.testing.assert_close(torch.logaddexp(lime, citron), lemon)
    torch.testing.assert_close(lime, citron)
    torch.testing.assert_close(apple, (gala + fuji) / 2 + math.log(2))
    assert (apple <= torch.logaddexp(gala, fuji) + 1e-5).all()
    torch.testing.assert_close(toys, before.category_logits.mean(dim=1))
    assert torch.equal(migrated.brand_head.weight[0], model.brand_head.weight[0])
    torch.testing.assert_close(after.brand_logits[:, 0], before.brand_logits[:, 0])
    assert (after.brand_logits[:, 1] < before.brand_logits.max(dim=1).values).all()
    assert torch.equal(after.embedding, before.embedding)


@pytest.fixture(scope="module")
def guaranteed_bundle(bundle):
    """With a guarantee for every field, as a model of more listings would have."""
    fields = tuple(
        dataclasses.replace(field, threshold=0.5, num_filled=20, uncertified_reason="")
        for field in bundle.calibration.fields
    )
    return dataclasses.replace(bundle, calibration=dataclasses.replace(bundle.calibration, fields=fields))


def rename_all(taxonomy):
    """The same tree and brands with other ids, the roots and brands in another order, and the map to them."""
    new_ids = {category.id: f"x-{category.id}" for category in taxonomy.categories}
    new = dataclasses.replace(
        taxonomy,
        version="renamed",
        categories=tuple(
            dataclasses.replace(c, id=new_ids[c.id], parent_id=c.parent_id and new_ids[c.parent_id])
            for c in taxonomy.categories[::-1]
        ),
        brands=taxonomy.brands[::-1],
    )
    return new, MigrationMap(categories={old: (id_,) for old, id_ in new_ids.items()})


def test_guarantees_stay_where_only_names_and_their_order_changed(guaranteed_bundle, tmp_path):
    old = guaranteed_bundle
    new, changes = rename_all(old.taxonomy)
    migrated = migrate_bundle(old, plan_migration(old.taxonomy, new, changes), tmp_path / "new")
    assert (migrated.categories_carried, migrated.brand_carried, migrated.added) == (True, True, ())
    made = migrated.bundle
    assert made.taxonomy == new
    assert made.info.taxonomy_version == "renamed"
    assert made.calibration.fields == old.calibration.fields
    logits = [onnx_forward(one.onnx_path)(old.golden.photos_nhwc) for one in (old, made)]
    of_old = [old.taxonomy.leaf_ids.index(leaf.removeprefix("x-")) for leaf in new.leaf_ids]
    assert of_old != sorted(of_old)
    np.testing.assert_array_equal(logits[1].category, logits[0].category[:, of_old])
    assert made.info.training["taxonomies_migrated"] == [
        {"from": old.taxonomy.version, "to": "renamed", "to_version": old.info.model_version}
    ]


def test_guarantees_of_another_backend_are_void(guaranteed_bundle, tmp_path):
    certifies = {**guaranteed_bundle.calibration.certifies, "backend": "tensorrt"}
    calibration = dataclasses.replace(guaranteed_bundle.calibration, certifies=certifies)
    old = dataclasses.replace(guaranteed_bundle, calibration=calibration)
    new, changes = rename_all(old.taxonomy)
    migrated = migrate_bundle(old, plan_migration(old.taxonomy, new, changes), tmp_path / "new")
    assert (migrated.categories_carried, migrated.brand_carried) == (False, False)
    version = old.taxonomy.version
    assert {field.uncertified_reason for field in migrated.bundle.calibration.fields} == {
        f"the taxonomy went from {version} to renamed since calibration; run `listing-vision calibrate`"
    }


def test_guarantees_are_void_by_name_where_classes_changed(guaranteed_bundle, tmp_path):
    old = guaranteed_bundle
    first = old.taxonomy.leaf_ids[0]
    other = next(
        c.id
        for c in old.taxonomy.categories
        if c.id in old.taxonomy.leaf_ids[1:] and c.parent_id == old.taxonomy.by_id[first].parent_id
    )
    new = dataclasses.replace(
        old.taxonomy,
        version="merged",
        categories=tuple(c for c in old.taxonomy.categories if c.id != other),
        brands=(*old.taxonomy.brands, Brand(id="omega", names={"en": "Omega"})),
    )
    migration = plan_migration(old.taxonomy, new, MigrationMap(categories={other: (first,)}))
    migrated = migrate_bundle(old, migration, tmp_path / "new")
    assert (migrated.categories_carried, migrated.brand_carried, migrated.added) == (False, False, ("omega",))
    assert all(field.threshold is None for field in migrated.bundle.calibration.fields)
    reasons = {field.uncertified_reason for field in migrated.bundle.calibration.fields}
    merged = ", ".join(c.old_id for c in migration.changes if c.what == "merged")
    assert reasons == {
        f"category merged: {merged} since calibration; run `listing-vision calibrate`",
        "brand added: omega since calibration; run `listing-vision calibrate`",
    }


def test_what_cannot_be_migrated_is_refused(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"has the taxonomy .* not the 'small-1' of the migration"):
        migrate_bundle(bundle, SPLIT_AND_MERGED, tmp_path / "new")
    half = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, precision="fp16"))
    with pytest.raises(BundleError, match="migrate the fp32 bundle that it was made from"):
        migrate_bundle(half, SPLIT_AND_MERGED, tmp_path / "new")
    with pytest.raises(BundleError, match="exists"):
        migrate_bundle(bundle, SPLIT_AND_MERGED, tmp_path)
