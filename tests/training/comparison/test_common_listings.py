import numpy as np
import pytest

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from tests.support.two_models import model
from training.comparison.common_listings import match_labels, predict_both
from vision.engine import Logits
from vision.errors import ManifestError
from vision.manifest import Manifest
from vision.taxonomy import OTHER_BRAND, Brand, Category, Taxonomy

TAXONOMY = create_small_taxonomy()
# The same lemon under another path, the path of a Fuji with another id, a brand and two categories fewer.
OTHER = Taxonomy(
    version="other-1",
    categories=(
        Category(id="citrus", names={"en": "Citrus"}),
        Category(id="lemon", names={"en": "Lemons"}, parent_id="citrus"),
        Category(id="fruit", names={"en": "Fruit"}),
        Category(id="apple", names={"en": "Apple"}, parent_id="fruit"),
        Category(id="fuji-2", names={"en": "Fuji"}, parent_id="apple"),
    ),
    brands=(Brand(id="zeta", names={"en": "Zeta Corp"}),),
    no_brand="none",
)


def create_manifest(rows, base=""):
    columns = ("listing_id", "photo", "category", "brand")
    return Manifest.from_rows([dict(zip(columns, row, strict=True)) for row in rows], base)


def create_recording_model(taxonomy, seen, *, input_px=32, answer=0.0):
    """A model that keeps the photos it is shown and answers with one of their values."""

    def infer(photos):
        seen.append(photos)
        category = np.full((len(photos), len(taxonomy.leaf_ids)), answer, np.float32)
        category[:, 0] = photos[:, 0, 0, 0]
        brand = np.zeros((len(photos), len(taxonomy.brand_labels)), np.float32)
        return Logits(category, brand, np.zeros((len(photos), 1), np.float32), np.ones(len(photos), np.float32))

    return model(taxonomy, infer=infer, input_px=input_px)


@pytest.fixture
def photos(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(encode_image(create_scene(60 + i, 40).rotate(90 * i, expand=True)))
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def test_labels_are_found_by_what_either_knows_and_held_together_by_id():
    rows = [
        ("a", "0", "Fruit > Lemon", "Zeta"),  # A's path, A's brand name
        ("b", "0", "Citrus > Lemons", "Zeta Corp"),  # B's
        ("c", "0", "Fruit > Apple > Fuji", "none"),  # one path, two ids; B's word for no brand
        ("d", "0", "tools", "no brand"),
        ("e", "0", "nowhere", "Acme"),
        ("f", "0", "", "Nobody"),
        ("g", "0", "fruit", ""),
    ]
    labels = match_labels(create_manifest(rows), TAXONOMY, OTHER)
    lemon_a, lemon_b = TAXONOMY.node_index["lemon"], OTHER.node_index["lemon"]
    assert labels.categories_shared.tolist() == [True, True, False, False, False, False, True]
    assert labels.in_a.category_nodes[:2].tolist() == [lemon_a, lemon_a]
    assert labels.in_b.category_nodes[:2].tolist() == [lemon_b, lemon_b]
    assert labels.in_a.category_nodes[4:].tolist() == [-1, -1, TAXONOMY.node_index["fruit"]]
    assert labels.brands_shared.tolist() == [True, True, True, True, False, True, False]
    assert labels.in_a.brands.tolist() == [2, 2, 0, 0, 1, OTHER_BRAND, -1]
    assert labels.in_b.brands.tolist() == [1, 1, 0, 0, OTHER_BRAND, OTHER_BRAND, -1]
    assert {(label.label, label.reason) for label in labels.excluded_labels} == {
        ("Fruit > Apple > Fuji", "not the same id in both"),
        ("tools", "unknown to B"),
        ("nowhere", "unknown to both"),
        ("Acme", "unknown to B"),
    }


def test_a_listing_counts_once_however_many_photos_it_has():
    rows = [("a", str(i), "tools" if i else "", "Acme") for i in range(4)]
    excluded_labels = match_labels(create_manifest(rows), TAXONOMY, OTHER).excluded_labels
    assert [(label.field, label.num_listings) for label in excluded_labels] == [("category", 1), ("brand", 1)]


def test_photos_are_decoded_once_for_one_preprocessing(photos):
    manifest = create_manifest([(f"l{i // 2}", f"{i}.jpg", "gala", "") for i in range(5)], str(photos))
    seen_a, seen_b = [], []
    both = predict_both(
        manifest, create_recording_model(TAXONOMY, seen_a), create_recording_model(TAXONOMY, seen_b), batch_size=2
    )
    assert len(seen_a) == 3
    assert all(a is b for a, b in zip(seen_a, seen_b, strict=True))  # the very same arrays
    assert both.listing_ids == ("l0", "l1", "l2")
    assert both.groups.tolist() == [0, 0, 1, 1, 2]
    assert both.get_photo_urls(1) == (f"{photos}/2.jpg", f"{photos}/3.jpg")


def test_two_sizes_are_decoded_twice_and_stay_in_step(photos):
    rows = [(f"l{i}", f"{i}.jpg", "gala", "") for i in range(5)]
    rows.insert(1, ("cut", "cut.jpg", "gala", ""))
    seen_a, seen_b = [], []
    a, b = create_recording_model(TAXONOMY, seen_a), create_recording_model(TAXONOMY, seen_b, input_px=48)
    both = predict_both(create_manifest(rows, str(photos)), a, b, batch_size=4)
    assert {array.shape[1] for array in seen_a} == {32}
    assert {array.shape[1] for array in seen_b} == {48}
    assert both.listing_ids == ("l0", "l1", "l2", "l3", "l4")
    assert len(both.unusable) == 1  # once, though it was tried twice
    assert np.array_equal(both.a.category[:, 0], np.concatenate(seen_a)[:, 0, 0, 0])
    assert np.array_equal(both.b.category[:, 0], np.concatenate(seen_b)[:, 0, 0, 0])


def test_nothing_in_common_is_said_before_a_photo_is_read():
    rows = [("a", "gone.jpg", "tools", "Acme"), ("b", "gone.jpg", "gala", "no brand")]
    with pytest.raises(ManifestError, match="nothing to compare") as error:
        predict_both(create_manifest(rows), model(TAXONOMY), model(OTHER))
    assert "taxonomy 'small-1', B: taxonomy 'other-1'" in str(error.value)
    assert "category 'tools': unknown to B" in str(error.value)
    with pytest.raises(ManifestError, match="give a manifest with labels"):
        predict_both(create_manifest([("a", "gone.jpg", "", "")]), model(TAXONOMY), model(TAXONOMY))
