import pytest

from training.run import Run
from training.trainer.trainer import Trainer
from training.trainer.validation import require_trained_labels
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
        Trainer(
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
