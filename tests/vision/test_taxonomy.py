import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import create_small_taxonomy
from vision.errors import TaxonomyError
from vision.taxonomy import Brand, Category, Taxonomy, create_slug


@st.composite
def taxonomies(draw) -> Taxonomy:
    count = draw(st.integers(1, 25))
    parents = [None] + [draw(st.one_of(st.none(), st.integers(0, i - 1))) for i in range(1, count)]
    categories = tuple(
        Category(id=f"c{i}", names={"en": draw(st.text(max_size=8)) + str(i)}, parent_id=None if p is None else f"c{p}")
        for i, p in enumerate(parents)
    )
    brands = tuple(Brand(id=f"b{i}", names={"en": f"Brand {i}"}) for i in range(draw(st.integers(0, 5))))
    return Taxonomy(version=draw(st.text(max_size=9)), categories=categories, brands=brands)


@given(taxonomies())
def test_json_round_trip(taxonomy):
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy


@given(taxonomies())
def test_each_node_has_a_leaf_below_and_each_leaf_only_its_ancestors_above(taxonomy):
    below = taxonomy.leaves_below
    assert below.any(axis=1).all()
    for column, leaf in enumerate(taxonomy.leaf_ids):
        above = {taxonomy.categories[row].id for row in np.flatnonzero(below[:, column])}
        assert above == {category.id for category in taxonomy.get_lineage(leaf)}


def test_leaves_keep_file_order():
    assert create_small_taxonomy().leaf_ids == ("gala", "fuji", "lemon", "tools")
    assert create_small_taxonomy().max_depth == 3


@pytest.mark.parametrize("text", ["gala", "Fruit > Apple > Gala", "fruit>apple>gala", " Fruit >  Apple > GALA"])
def test_categories_are_found_by_id_and_by_path(text):
    assert create_small_taxonomy().find_category(text) == "gala"


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(KeyError, match=r"'Fruit > Apple > Galla'; nearest known: 'Fruit > Apple > Gala'"):
        create_small_taxonomy().find_category("Fruit > Apple > Galla")
    with pytest.raises(KeyError, match=r"'Zetta'; nearest known: 'Zeta'"):
        create_small_taxonomy().find_brand("Zetta")


@pytest.mark.parametrize(("text", "index"), [("no brand", 0), ("Acme", 1), ("acme corp", 1), ("zeta", 2)])
def test_brands_are_found_by_id_name_and_alias(text, index):
    assert create_small_taxonomy().find_brand(text) == index


def test_paths_are_localised_and_fall_back_to_english():
    assert create_small_taxonomy().format_path("lemon", "ja") == "fruit-ja > lemon-ja"
    assert create_small_taxonomy().format_path("lemon", "fr") == "Fruit > Lemon"


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([("a", None), ("a", None)], "ids stand twice: \\['a'\\]"),
        ([("a", "b")], "parent 'b' is not in the taxonomy"),
        ([("a", "b"), ("b", "a")], "its own ancestor"),
        ([], "no categories"),
    ],
)
def test_contradictions_are_refused(categories, said):
    with pytest.raises(TaxonomyError, match=said):
        Taxonomy(
            version="x",
            categories=tuple(Category(id=i, names={"en": i}, parent_id=p) for i, p in categories),
            brands=(),
        )


def test_two_siblings_of_one_name_are_refused():
    twins = tuple(Category(id=i, names={"en": "Cups"}) for i in ("a", "b"))
    with pytest.raises(TaxonomyError, match="2 categories have the path 'cups'"):
        Taxonomy(version="x", categories=twins, brands=())


def test_a_brand_name_that_stands_for_two_is_refused():
    brands = (Brand(id="a", names={"en": "Acme"}), Brand(id="b", names={"en": "Beta"}, aliases=("ACME",)))
    with pytest.raises(TaxonomyError, match="stands for both"):
        Taxonomy(version="x", categories=(Category(id="c", names={"en": "C"}),), brands=brands)


def test_another_schema_version_is_refused():
    raw = json.loads(create_small_taxonomy().to_json()) | {"schema_version": 2}
    with pytest.raises(TaxonomyError, match="schema_version 2 is not 1"):
        Taxonomy.from_json(json.dumps(raw))


def create_japanese_taxonomy() -> Taxonomy:
    """婦人 (Women) with shoes that alone have an English name, and 紳士 with shoes of the same Japanese name."""
    return Taxonomy(
        version="ja-1",
        categories=(
            Category(id="women", names={"ja": "婦人"}),
            Category(id="women/shoes", names={"ja": "靴", "en": "Shoes"}, parent_id="women"),
            Category(id="men", names={"ja": "紳士"}),
            Category(id="men/shoes", names={"ja": "靴"}, parent_id="men"),
            Category(id="men/bags", names={"ja": "かば\u3093"}, parent_id="men"),
        ),
        brands=(Brand(id="shiseido", names={"ja": "資生堂"}),),
    )


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("婦人 > 靴", "women/shoes"),
        ("婦人>Shoes", "women/shoes"),
        ("Shoes", "women/shoes"),
        ("shoes ", "women/shoes"),
        ("かばん", "men/bags"),
        (unicodedata.normalize("NFD", "かばん"), "men/bags"),
    ],
)
def test_categories_are_found_by_any_of_their_names(text, category):
    assert create_japanese_taxonomy().find_category(text) == category


def test_a_name_of_several_categories_names_them():
    with pytest.raises(KeyError, match=r"category '靴' stands for 2: '婦人 > Shoes', '紳士 > 靴'; write the path"):
        create_japanese_taxonomy().find_category("靴")
    # A root's name is its path.
    roots = tuple(Category(id=i, names={"en": name}, parent_id=p) for i, name, p in [("a", "A", None), ("b", "A", "a")])
    assert Taxonomy(version="x", categories=roots, brands=()).find_category("A") == "a"


def test_a_name_with_the_separator_is_found_by_its_own_path():
    taxonomy = Taxonomy(version="x", categories=(Category(id="a", names={"en": "Bags>Totes"}),), brands=())
    assert taxonomy.find_category(taxonomy.format_path("a")) == "a"


@given(taxonomies())
def test_each_category_is_found_by_its_path(taxonomy):
    for category in taxonomy.categories:
        assert taxonomy.find_category(taxonomy.format_path(category.id)) == category.id


def test_names_need_not_be_english():
    taxonomy = create_japanese_taxonomy()
    assert taxonomy.language_codes == ("en", "ja")
    assert taxonomy.format_path("women/shoes", "ja") == "婦人 > 靴"
    assert taxonomy.brand_labels[1] == "資生堂"
    only_japanese = Taxonomy(version="x", categories=(Category(id="a", names={"ja": "靴"}),), brands=())
    assert only_japanese.language_codes == ("ja",)
    assert [only_japanese.match_language(code) for code in ("ja-JP", "en", "")] == ["ja"] * 3


@pytest.mark.parametrize("kind", ["category", "brand"])
def test_a_name_is_needed_in_some_language(kind):
    categories = (Category(id="a", names={"en": "A"} if kind == "brand" else {}),)
    with pytest.raises(TaxonomyError, match=f"{kind} '.' has no name; add one"):
        Taxonomy(version="x", categories=categories, brands=(Brand(id="b", names={}),) if kind == "brand" else ())


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("T-Shirts & Tops", "t-shirts-tops"),
        ("เสื้อ", "เสื้อ"),
        (unicodedata.normalize("NFD", "Café"), "café"),
        ("👟", "u1f45f"),
        ("\u2764\ufe0f Cups", "cups"),
        ("\u2764\ufe0f", "u2764"),
        (" ", ""),
    ],
)
def test_ids_keep_letters_and_marks_of_every_script(name, slug):
    assert create_slug(name) == slug


def test_a_missing_file_says_what_writes_one(tmp_path):
    with pytest.raises(TaxonomyError, match="data import"):
        Taxonomy.load(tmp_path / "none.json")


def test_a_taxonomy_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "taxonomy.json"
    path.write_text("old")

    def fail(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("vision.runtime.files.sync_to_disk", fail)
    with pytest.raises(OSError, match="no space left"):
        create_small_taxonomy().save(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
