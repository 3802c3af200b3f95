import dataclasses

import pytest
import torch

from training.run import Run
from training.trainer.training_loop import TrainingLoop
from training.trainer.validation import WeightChoice, require_trained_labels
from vision.errors import ManifestError
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


def test_val_labels_that_train_lacks_are_refused_by_name(synthetic_dataset, small_recipe, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    rows = manifest.table.to_pylist()
    missing = next(row["category"] for row in rows if row["split"] == "val")
    kept = [row for row in rows if row["split"] != "train" or row["category"] != missing]
    Manifest.from_rows([{**r, "photo": str(synthetic_dataset / r["photo"])} for r in kept], "").save(
        str(tmp_path / "m.parquet")
    )
    leaf = missing.split(" > ")[-1].lower()
    with pytest.raises(ManifestError, match=rf"category '.*{leaf}': \d+ val photos, none in train"):
        TrainingLoop(
            small_recipe,
            manifest_url=str(tmp_path / "m.parquet"),
            manifest=Manifest.load(str(tmp_path / "m.parquet")),
            taxonomy=Taxonomy.load(synthetic_dataset / "taxonomy.json"),
            run=Run(tmp_path / "run"),
        )


def test_val_labels_that_train_has_are_accepted(synthetic_dataset):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    taxonomy = Taxonomy.load(synthetic_dataset / "taxonomy.json")
    train, val = (manifest.select_split(split).resolve_labels(taxonomy) for split in ("train", "val"))
    require_trained_labels(train, val, taxonomy)


def test_a_val_listing_may_be_out_of_scope_and_is_not_judged(synthetic_dataset, small_recipe, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    rows = [{**r, "photo": str(synthetic_dataset / r["photo"])} for r in manifest.table.to_pylist()]
    outside = next(row for row in rows if row["split"] == "val")
    outside |= {"category": "out of scope", "brand": ""}
    url = str(tmp_path / "m.parquet")
    Manifest.from_rows(rows, "").save(url)

    def train(name, **changes):
        taxonomy, recipe = (
            Taxonomy.load(synthetic_dataset / "taxonomy.json"),
            dataclasses.replace(small_recipe, **changes),
        )
        loop = TrainingLoop(
            recipe, manifest_url=url, manifest=Manifest.load(url), taxonomy=taxonomy, run=Run(tmp_path / name)
        )
        return loop.validation.evaluate(loop.train_step)["val_leaf_top1"]

    score = train("with")
    Manifest.from_rows([row for row in rows if row is not outside], "").save(url)
    assert score == train("without")
    outside["split"] = "train"
    Manifest.from_rows(rows, "").save(url)
    with pytest.raises(ManifestError, match=r"no category to train on.* with an outlier_exposure_weight"):
        train("refused")
    train("trained on", outlier_exposure_weight=0.5)


def judge(choice, epoch, leaf, brand=None):
    choice.judge(epoch, {"val_leaf_top1": leaf, "val_brand_top1": brand}, {"weight": torch.tensor(float(epoch))})


def test_the_best_epoch_is_kept_and_the_later_of_equals():
    choice = WeightChoice(patience=2)
    for epoch, score in enumerate([0.3, 0.5, 0.5, 0.4], start=1):
        judge(choice, epoch, score)
    assert (choice.epoch, choice.score, choice.tensors["weight"]) == (3, 0.5, 3.0)
    assert [choice.ends_run(epochs) for epochs in (4.0, 4.9, 5.0, 5.1)] == [False, False, True, False]
    assert not WeightChoice().ends_run(100.0)


def test_brands_decide_where_no_leaf_is_known():
    choice = WeightChoice()
    judge(choice, 1, None, 0.4)
    judge(choice, 2, None, 0.3)
    assert (choice.epoch, choice.score) == (1, 0.4)


def test_kept_weights_do_not_change_with_the_model():
    choice, weight = WeightChoice(), torch.zeros(1)
    choice.judge(1, {"val_leaf_top1": 1.0, "val_brand_top1": None}, {"weight": weight})
    weight += 1
    assert choice.tensors["weight"] == 0
