"""Two versions of a taxonomy: what differs, and where labels go."""

import csv
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import create_small_taxonomy
from training.data.taxonomy_changes import MigrationMap, diff_taxonomies, plan_migration, write_changes
from vision.errors import ManifestError, TaxonomyError
from vision.manifest import Manifest
from vision.taxonomy import Brand, Category, Taxonomy

OLD = create_small_taxonomy()
MAP = """
[categories]
fruit = "produce"
gala = "red"
fuji = "red"
lemon = ["lime", "citron"]
tools = []
[brands]
zeta = []
acme = "acme-inc"
"""


def create_new_taxonomy() -> Taxonomy:
    """Produce > Apple > Red, Produce > Citrus > (Lime, Citron), Toys."""
    tree = [
        ("produce", None),
        ("apple", "produce"),
        ("red", "apple"),
        ("citrus", "produce"),
        ("lime", "citrus"),
        ("citron", "citrus"),
        ("toys", None),
    ]
    return Taxonomy(
        version="small-2",
        categories=tuple(Category(id=i, names={"en": i.title()}, parent_id=p) for i, p in tree),
        brands=(Brand(id="acme-inc", names={"en": "Acme Inc"}), Brand(id="omega", names={"en": "Omega"})),
        no_brand="unbranded",
        other_brand="another",
    )


@pytest.fixture
def migration(tmp_path):
    (tmp_path / "map.toml").write_text(MAP)
    return plan_migration(OLD, create_new_taxonomy(), MigrationMap.load(tmp_path / "map.toml"))


def test_every_category_and_brand_has_a_change(migration):
    assert [str(change) for change in migration.changes] == [
        "category renamed: Fruit [fruit] → Produce [produce]",
        "category renamed: Fruit > Apple [apple] → Produce > Apple [apple]",
        "category merged: Fruit > Apple > Gala [gala] → Produce > Apple > Red [red]",
        "category merged: Fruit > Apple > Fuji [fuji] → Produce > Apple > Red [red]",
        "category split: Fruit > Lemon [lemon] → Produce > Citrus [citrus] (lime, citron)",
        "category retired: Tools [tools]",
        "brand renamed: Acme [acme] → Acme Inc [acme-inc]",
        "brand retired: Zeta [zeta]",
        "category added: Toys [toys]",
        "brand added: Omega [omega]",
    ]


def test_labels_are_carried_over_and_counted(migration):
    labels = [
        ("Fruit > Apple > Gala", "Acme"),
        ("fuji", "ACME Corp"),
        ("fruit-ja > lemon-ja", "zeta"),
        ("tools", "no brand"),
        ("Fruit", "other brand"),
        ("", ""),
        ("Out of scope", ""),
    ]
    rows = [{"listing_id": str(i), "photo": "a", "category": c, "brand": b} for i, (c, b) in enumerate(labels)]
    migrated, counts = migration.migrate(Manifest.from_rows(rows, "/photos"))
    assert [(row["category"], row["brand"]) for row in migrated.table.to_pylist()] == [
        ("red", "Acme Inc"),
        ("red", "Acme Inc"),
        ("citrus", "another"),
        ("", "unbranded"),
        ("produce", "another"),
        ("", ""),
        ("Out of scope", ""),
    ]
    found = migrated.resolve_labels(migration.new, out_of_scope=True)
    assert found.brands.tolist() == [1, 1, -2, 0, -2, -1, -1]
    assert {(change.what, change.old_id): number for change, number in counts.items()} == {
        ("renamed", "fruit"): 1,
        ("merged", "gala"): 1,
        ("merged", "fuji"): 1,
        ("split", "lemon"): 1,
        ("retired", "tools"): 1,
        ("renamed", "acme"): 2,
        ("retired", "zeta"): 1,
    }
    with pytest.raises(ManifestError, match="unknown category 'nonsense'"):
        migration.migrate(Manifest.from_rows([{"listing_id": "1", "photo": "a", "category": "nonsense"}], ""))


@given(st.lists(st.tuples(st.sampled_from([c.id for c in OLD.categories]), st.sampled_from(OLD.brand_labels))))
def test_a_new_version_of_the_same_taxonomy_changes_no_label(labels):
    new = dataclasses.replace(OLD, version="small-2")
    rows = [{"listing_id": str(i), "photo": "a", "category": c, "brand": b} for i, (c, b) in enumerate(labels)]
    manifest = Manifest.from_rows(rows, "")
    migrated, counts = plan_migration(OLD, new, MigrationMap()).migrate(manifest)
    assert counts == {}
    before, after = manifest.resolve_labels(OLD), migrated.resolve_labels(new)
    assert before.category_nodes.tolist() == after.category_nodes.tolist()
    assert before.brands.tolist() == after.brands.tolist()


def test_what_differs_is_told_by_id():
    categories = [dataclasses.replace(c, parent_id="fruit") if c.id == "tools" else c for c in OLD.categories]
    new = dataclasses.replace(OLD, categories=tuple(c for c in categories if c.id != "lemon"), brands=OLD.brands[:1])
    assert [str(change) for change in diff_taxonomies(OLD, new)] == [
        "category retired: Fruit > Lemon [lemon]",
        "category moved: Tools [tools] → Fruit > Tools [tools]",
        "brand retired: Zeta [zeta]",
    ]
    assert diff_taxonomies(OLD, OLD) == []


def test_everything_that_the_map_leaves_open_is_named():
    changes = MigrationMap(
        categories={"fruit": ("produce",), "gala": ("rde",), "nuts": ()}, brands={"acme": ("acme-inc", "omega")}
    )
    with pytest.raises(TaxonomyError) as caught:
        plan_migration(OLD, create_new_taxonomy(), changes)
    lines = str(caught.value).splitlines()
    assert lines[0] == "taxonomy 'small-1' cannot be migrated to 'small-2':"
    assert "  category 'fuji' is not in the new taxonomy; say in the map where it went, or 'fuji' = []" in lines
    assert "  category 'nuts' of the map is not in the old taxonomy" in lines
    assert "  category 'rde', which 'gala' becomes, is not in the new taxonomy" in lines
    assert "  brand 'zeta' is not in the new taxonomy; say in the map where it went, or 'zeta' = []" in lines
    assert "  brand 'acme' cannot become 2; a label does not say which" in lines


def test_one_version_for_two_taxonomies_is_refused():
    with pytest.raises(TaxonomyError, match="both taxonomies have the version 'small-1'"):
        plan_migration(OLD, OLD, MigrationMap())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[categories", "cannot be read"),
        ("[category]\n", "table 'category' is neither"),
        ("[categories]\na = 7\n", "a = 7 is not an id"),
        ("[categories]\na = ['']\n", "is not an id"),
        ("categories = 'a'\n", "'a' is no table"),
    ],
)
def test_a_map_of_another_form_is_refused(tmp_path, text, said):
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(TaxonomyError, match=said):
        MigrationMap.load(tmp_path / "map.toml")


def test_changes_are_a_table_to_join_stored_rows_with(migration, tmp_path):
    write_changes(migration.changes, tmp_path / "changes.csv")
    with (tmp_path / "changes.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["old_id"]: row for row in csv.DictReader(file)}
    assert (rows["gala"]["change"], rows["gala"]["new_id"]) == ("merged", "red")
    assert (rows["lemon"]["new_id"], rows["lemon"]["parts"]) == ("citrus", "lime citron")
