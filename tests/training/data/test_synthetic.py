import numpy as np

from training.data.synthetic import (
    BRANDS,
    PRODUCTS,
    create_synthetic_dataset,
    create_synthetic_photo,
    create_synthetic_taxonomy,
)
from vision.images import decode_photo
from vision.manifest import Manifest


def test_the_same_seed_draws_the_same_photo_and_another_another():
    one, same, other = (create_synthetic_photo(0, 1, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_the_brand_shows_only_in_its_mark():
    with_mark, without = (
        decode_photo(create_synthetic_photo(4, 3, np.random.default_rng(5), with_mark=mark), at_least_px=400).astype(
            int
        )
        for mark in (True, False)
    )
    changed = np.abs(with_mark - without).max(axis=2) > 60
    assert 0.002 < changed.mean() < 0.05


def test_a_drawn_data_set_has_what_real_listings_have(synthetic_dataset, tmp_path):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).table.to_pylist()
    get_photo_urls: dict[str, int] = {}
    for row in rows:
        get_photo_urls[row["listing_id"]] = get_photo_urls.get(row["listing_id"], 0) + 1
    assert set(get_photo_urls.values()) == {1, 2, 3}
    assert {row["category"] for row in rows} == {" > ".join(product.path) for product in PRODUCTS}
    manifest, taxonomy = create_synthetic_dataset(tmp_path, listings={"train": 120}, seed=3)
    brands = set(manifest.column("brand").to_pylist())
    assert brands == {"", "no brand", *BRANDS}
    manifest.resolve_labels(taxonomy)


def test_each_category_and_brand_has_an_english_and_a_japanese_name():
    taxonomy = create_synthetic_taxonomy()
    for named in (*taxonomy.categories, *taxonomy.brands):
        assert set(named.names) == {"en", "ja"}
        assert any(ord(letter) > 0x3000 for letter in named.names["ja"])
