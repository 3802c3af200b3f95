import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.outcome_tables import create_outcome, create_suggestion, write_tables
from training.outcomes.manifest import build_outcome_manifests
from training.outcomes.tables import open_tables
from vision.errors import ManifestError
from vision.manifest import Manifest


def test_the_next_manifest_keeps_what_was_seen_apart(tmp_path):
    url = write_tables(
        tmp_path / "outcomes",
        [create_suggestion(name, 1) for name in "abcd"],
        [
            create_outcome("a", 2, brand_kind="OTHER", brand_name=" acme CORP "),
            create_outcome("b", 2, None, brand_kind="OTHER", brand_name="Newcomer"),
            create_outcome("c", 2, "fuji", treatment="HIDDEN", brand_kind="NO_BRAND"),
            create_outcome("d", 2, "lemon"),
        ],
    )
    photos = Manifest.from_rows([{"listing_id": n, "photo": f"/p/{n}{i}.jpg"} for n in "abce" for i in (0, 1)], "")
    tree = create_small_taxonomy()
    with open_tables(url, {"": tree}) as tables:
        made = build_outcome_manifests(tables, photos, tree)
        with pytest.raises(ManifestError, match="are its listing_id the same ones"):
            build_outcome_manifests(tables, photos.take(np.array([6, 7])), tree)

    def labels(manifest):
        return {(row["listing_id"], row["category"], row["brand"]) for row in manifest.table.to_pylist()}

    assert labels(made.shown) == {("a", "gala", "acme"), ("b", "", "")}
    assert labels(made.unseen) == {("c", "fuji", tree.brand_labels[0])}
    assert (len(made.shown), len(made.unseen)) == (4, 2)
    assert (made.new_brands, made.num_without_photos) == ({"Newcomer": 1}, 1)


def test_each_field_that_was_not_seen_is_for_evaluation_by_itself(tmp_path):
    url = write_tables(
        tmp_path / "outcomes",
        [create_suggestion(name, 1) for name in "abc"],
        [
            create_outcome("a", 2, "fuji", brand_treatment=None, category_treatment="HIDDEN"),  # a shop without brands
            create_outcome("b", 2, "gala", brand_kind="BRAND", brand_id="acme", brand_treatment="HIDDEN"),
            create_outcome("c", 2, "lemon"),
        ],
    )
    photos = Manifest.from_rows([{"listing_id": name, "photo": f"/p/{name}.jpg"} for name in "abc"], "")
    tree = create_small_taxonomy()
    with open_tables(url, {"": tree}) as tables:
        made = build_outcome_manifests(tables, photos, tree)
    rows = {row["listing_id"]: (row["category"], row["brand"]) for row in made.unseen.table.to_pylist()}
    assert rows == {"a": ("fuji", ""), "b": ("", "acme")}
    assert made.shown.column("listing_id").to_pylist() == ["c"]
