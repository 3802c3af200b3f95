"""Scores read back from suggestions, and what labels say about them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from serving.backfill.ledger import Ledger
from serving.backfill.stored_scores import ListingLabel, compare_with_labels, read_labels, read_scores
from serving.errors import BackfillError
from vision.errors import ManifestError
from vision.manifest import OUT_OF_SCOPE, UNLABELLED
from vision.taxonomy import OTHER_BRAND

THRESHOLD = 0.15
"""That of `certified_bundle`."""


@pytest.fixture(scope="module")
def suggestions(finished_backfill):
    paths = [finished_backfill.full_path(entry.suggestions.path) for entry in Ledger(finished_backfill).entries()]
    return pa.concat_tables([pyarrow.parquet.read_table(path) for path in paths])


def change(table, row, **values):
    rows = table.to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, schema=table.schema)


def test_the_scores_are_those_that_the_decision_rule_compares_with_its_thresholds(suggestions, certified_bundle):
    taxonomy = certified_bundle.taxonomy
    scores, rows = read_scores(suggestions, taxonomy), suggestions.to_pylist()
    num_filled = 0
    for row, path_scores, brand_score in zip(
        rows, scores.categories >= THRESHOLD, scores.brands >= THRESHOLD, strict=True
    ):
        if row["photos_disagree"]:
            assert not path_scores.any()
            assert not brand_score
            continue
        filled = [step["filled"] for step in row["category_path"]]
        for depth in np.flatnonzero(taxonomy.decides_at_depth[: len(filled)]):
            assert path_scores[depth] == filled[depth]
        # A brand that is less likely right than wrong is not offered unless it is filled.
        assert brand_score == row["brand"]["filled"]
        num_filled += sum(filled)
    assert 0 < num_filled < sum(len(row["category_path"]) for row in rows)
    assert (scores.categories[:, 1:] <= scores.categories[:, :-1]).all()


def test_what_is_out_of_scope_in_disagreement_or_without_photo_has_no_score(suggestions, certified_bundle):
    taxonomy = certified_bundle.taxonomy
    sure = next(i for i, row in enumerate(suggestions.to_pylist()) if row["filled_category_id"])
    assert np.isfinite(read_scores(suggestions, taxonomy).categories[sure]).any()
    nothing = {"category_path": None, "brand": None, "out_of_scope": None, "photos_disagree": None}
    unusable = {"result": "no_usable_photo", **nothing}
    for values in ({"out_of_scope": True}, {"photos_disagree": True}, unusable):
        scores = read_scores(change(suggestions, sure, **values), taxonomy)
        assert np.isneginf(scores.categories[sure]).all()
        assert np.isneginf(scores.brands[sure])
    brand = {"id": None, "name": None, "probability": 0.9, "filled": False}
    for kind, label, score in (("no_brand", 0, 0.9), ("unknown", OTHER_BRAND, -np.inf)):
        scores = read_scores(change(suggestions, sure, brand=brand | {"kind": kind}, photos_disagree=False), taxonomy)
        assert (scores.brand_labels[sure], scores.brands[sure]) == (label, np.float32(score))
    with pytest.raises(BackfillError, match=r"no column 'out_of_scope', since an earlier version .* --overwrite"):
        read_scores(suggestions.drop_columns(["out_of_scope"]), taxonomy)


def test_right_is_a_step_on_the_labelled_path_and_wrong_one_below_it(suggestions, certified_bundle):
    taxonomy = certified_bundle.taxonomy
    scores = read_scores(suggestions, taxonomy)
    depth = int((scores.nodes[0] >= 0).sum())
    leaf, root = int(scores.nodes[0, depth - 1]), int(scores.nodes[0, 0])
    other = next(taxonomy.node_index[i] for i in taxonomy.leaf_ids if taxonomy.leaf_paths[0, -1] != root)
    brand = int(scores.brand_labels[0])
    assert depth > 1

    def compare(node, brand_label):
        known, right = compare_with_labels(scores, ["a"] * len(suggestions), {"a": (node, brand_label)}, taxonomy)
        return known[0].tolist(), right[0].tolist()

    everything, nothing = [True] * taxonomy.max_depth, [False] * taxonomy.max_depth
    assert compare(leaf, UNLABELLED) == ([*everything, False], [i < depth for i in range(taxonomy.max_depth)] + [False])
    assert compare(root, UNLABELLED)[1] == [True, *nothing[1:], False]
    for label in (OTHER_BRAND, UNLABELLED, brand):
        assert compare(OUT_OF_SCOPE, label) == ([*everything, True], [*nothing, False])
    assert compare(UNLABELLED, brand) == ([*nothing, True], [*nothing, brand >= 0])
    assert not compare(other, UNLABELLED)[1][depth - 1] or other == leaf
    known, right = compare_with_labels(scores, ["b"] * len(suggestions), {"a": ListingLabel(leaf, 0)}, taxonomy)
    assert not known.any()
    assert not right.any()


@pytest.mark.parametrize(
    ("split", "said"), [("train", "1 rows .* learned their labels"), ("planned", "1 rows .* `calibrate-plan` drew")]
)
def test_labels_of_listings_that_are_easier_than_others_are_refused(certified_bundle, tmp_path, split, said):
    leaf = certified_bundle.taxonomy.leaf_ids[0]
    labels = tmp_path / "labels.csv"
    labels.write_text(f"listing_id,photo,category,split\na,1.jpg,{leaf},calibrate\nb,2.jpg,{leaf},{split}\n")
    with pytest.raises(BackfillError, match=said):
        read_labels([str(labels)], certified_bundle.taxonomy)


def test_labels_are_those_of_the_first_photo_that_has_one(certified_bundle, tmp_path):
    taxonomy = certified_bundle.taxonomy
    leaf = taxonomy.leaf_ids[0]
    text = f"listing_id,photo,category,brand\na,1.jpg,,no such brand\na,2.jpg,{leaf},\nb,3.jpg,out of scope,\n"
    (tmp_path / "labels.csv").write_text(text)
    assert read_labels([str(tmp_path / "labels.csv")], taxonomy) == {
        "a": ListingLabel(taxonomy.node_index[leaf], OTHER_BRAND),
        "b": ListingLabel(OUT_OF_SCOPE, UNLABELLED),
    }
    (tmp_path / "labels.csv").write_text(text.replace(leaf, "no-such-category"))
    with pytest.raises(ManifestError, match="no-such-category"):
        read_labels([str(tmp_path / "labels.csv")], taxonomy)
