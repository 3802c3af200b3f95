"""The verbs of `taxonomy`, called in this process."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet
from typer.testing import CliRunner

from tests.support.helpers import create_small_taxonomy
from training.cli.taxonomy import taxonomy_app
from vision.bundle import load_bundle
from vision.errors import TaxonomyError
from vision.manifest import Manifest
from vision.taxonomy import Brand, Taxonomy


def test_labels_move_to_a_new_taxonomy(tmp_path):
    old = create_small_taxonomy()
    new = dataclasses.replace(
        old, version="small-2", categories=tuple(c for c in old.categories if c.id not in ("gala", "fuji"))
    )
    (tmp_path / "old").mkdir()
    old.save(tmp_path / "old" / "taxonomy.json")
    new.save(tmp_path / "new.json")
    rows = [{"listing_id": str(i), "photo": f"{i}.jpg", "category": c} for i, c in enumerate(("gala", "fuji", "tools"))]
    Manifest.from_rows(rows, "").save(str(tmp_path / "old" / "manifest.parquet"))
    words = ["migrate", str(tmp_path / "old"), str(tmp_path / "new.json")]
    words += ["--manifest", str(tmp_path / "old" / "manifest.parquet")]
    words += ["--output", str(tmp_path / "new" / "manifest.parquet")]
    refused = CliRunner().invoke(taxonomy_app, words)
    assert isinstance(refused.exception, TaxonomyError)
    assert not (tmp_path / "new").exists()

    (tmp_path / "map.toml").write_text("[categories]\ngala = 'apple'\nfuji = 'apple'\n")
    done = CliRunner().invoke(
        taxonomy_app, [*words, "--map", str(tmp_path / "map.toml"), "--changes", str(tmp_path / "changes.csv")]
    )
    assert done.exit_code == 0, done.exception
    assert "1 photo: category merged: Fruit > Apple > Gala [gala] → Fruit > Apple [apple]" in done.stdout
    manifest = Manifest.load(str(tmp_path / "new" / "manifest.parquet"))
    assert manifest.column("category").to_pylist() == ["apple", "apple", "tools"]
    assert manifest.get_photo_url(0) == str(tmp_path / "old" / "0.jpg")
    assert Taxonomy.load(tmp_path / "new" / "taxonomy.json") == new
    assert (tmp_path / "changes.csv").read_text().startswith("kind,change,old_id")


def test_differences_are_printed(tmp_path):
    old = create_small_taxonomy()
    old.save(tmp_path / "old.json")
    dataclasses.replace(old, version="small-2", brands=old.brands[::-1]).save(tmp_path / "new.json")
    done = CliRunner().invoke(taxonomy_app, ["diff", str(tmp_path / "old.json"), str(tmp_path / "new.json")])
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines() == [
        "small-1 and small-2: 0 differences",
        "labels differ, or their order: a model of one has no meaning for the other",
    ]


def test_a_model_moves_to_a_new_taxonomy(bundle, tmp_path):
    omega = Brand(id="omega", names={"en": "Omega"})
    new = dataclasses.replace(bundle.taxonomy, version="more", brands=(*bundle.taxonomy.brands, omega))
    new.save(tmp_path / "new.json")
    words = ["migrate-bundle", str(bundle.folder), str(tmp_path / "new.json"), "--output", str(tmp_path / "new")]
    done = CliRunner().invoke(taxonomy_app, words)
    assert done.exit_code == 0, done.exception
    made = load_bundle(tmp_path / "new")
    assert done.stdout.splitlines() == [
        "guarantees, categories: carried over",
        "guarantees, brand: void; run `listing-vision calibrate`",
        "never seen, and never predicted before training: omega",
        f"bundle {tmp_path / 'new'}: small {made.info.model_version}, taxonomy more",
    ]
    assert made.taxonomy == new


def test_stored_rows_move_to_a_new_taxonomy(tmp_path):
    old = create_small_taxonomy()
    old.save(tmp_path / "old.json")
    new = tuple(category for category in old.categories if category.id != "fuji")
    dataclasses.replace(old, version="small-2", categories=new).save(tmp_path / "new.json")
    (tmp_path / "map.toml").write_text("[categories]\nfuji = 'gala'\n")
    (tmp_path / "rows").mkdir()
    table = pa.table({"category_id": ["fuji", "lemon"], "taxonomy_version": ["small-1", "small-0"]})
    pa.parquet.write_table(table, tmp_path / "rows" / "a.parquet")
    words = [
        "migrate-rows",
        str(tmp_path / "old.json"),
        str(tmp_path / "new.json"),
        "--map",
        str(tmp_path / "map.toml"),
    ]
    words += ["--rows", str(tmp_path / "rows"), "--output", str(tmp_path / "moved")]
    done = CliRunner().invoke(taxonomy_app, words)
    assert done.exit_code == 0, done.exception
    assert "1 rows carried over" in done.stdout
    assert "1 rows left as they are" in done.stdout
    assert pa.parquet.read_table(tmp_path / "moved" / "a.parquet").to_pylist() == [
        {"category_id": "gala", "taxonomy_version": "small-2"},
        {"category_id": "lemon", "taxonomy_version": "small-0"},
    ]
