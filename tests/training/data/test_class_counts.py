"""The table of photos by class and split."""

from tests.support.helpers import create_small_taxonomy
from training.data.class_counts import count_classes
from vision.manifest import Manifest
from vision.taxonomy import Category, Taxonomy


def create_manifest(*rows: tuple[str, str]) -> Manifest:
    return Manifest.from_rows(
        [{"listing_id": str(i), "photo": "a", "category": c, "split": s} for i, (c, s) in enumerate(rows)], ""
    )


def test_leaves_come_first_then_what_is_no_leaf():
    manifest = create_manifest(
        ("gala", "train"),
        ("Fruit > Apple > GALA", "val"),
        ("gala", ""),
        ("fruit", "val"),
        ("nonsense", "trian"),
        ("", ""),
    )
    counts = count_classes(manifest, create_small_taxonomy())
    assert counts.splits == ("train", "val", "trian", "(none)")
    assert counts.format_table().splitlines() == [
        "photos by class            train        val      trian     (none)        all",
        "Fruit > Apple > Gala           1          1          0          1          3",
        "Fruit > Apple > Fuji           0          0          0          0          0",
        "Fruit > Lemon                  0          0          0          0          0",
        "Tools                          0          0          0          0          0",
        "Fruit                          0          1          0          0          1",
        "(no category)                  0          0          0          1          1",
        "(not in the taxonomy)          0          0          1          0          1",
        "all                            1          2          1          2          6",
    ]
    assert (counts.count("Fruit > Apple > Gala"), counts.count("Fruit > Apple > Gala", "val")) == (3, 1)


def test_of_many_classes_those_with_the_fewest_photos_are_shown():
    categories = tuple(Category(id=f"c{i}", names={"ja": f"靴{i}"}) for i in range(9))
    manifest = create_manifest(*[(f"c{i}", "train") for i in range(9) for _ in range(9 - i)])
    table = count_classes(manifest, Taxonomy(version="x", categories=categories, brands=())).format_table(max_rows=2)
    assert table.splitlines() == [
        "photos by class                       train        all",
        "靴7                                       2          2",
        "靴8                                       1          1",
        "… and 7 classes with more photos",
        "all                                      45         45",
    ]
