"""The verbs of `listing-vision taxonomy`: compare two versions, and carry labels over."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vision.runtime.cli import create_cli_app

if TYPE_CHECKING:
    from vision.taxonomy import Taxonomy

__all__ = ["taxonomy_app"]

taxonomy_app = create_cli_app("Compare two versions of a taxonomy, and carry labels over.")

OldTaxonomy = Annotated[Path, typer.Argument(help="The old taxonomy.json, or a folder or bundle with one.")]
NewTaxonomy = Annotated[Path, typer.Argument(help="The new taxonomy.json, or a folder or bundle with one.")]


@taxonomy_app.command("diff")
def diff(old: OldTaxonomy, new: NewTaxonomy) -> None:
    """Print the categories and brands that were added, renamed, moved or retired, by their ids.

    Example: listing-vision taxonomy diff data/old/taxonomy.json data/new/taxonomy.json
    """
    from training.data.taxonomy_changes import diff_taxonomies

    old_tree, new_tree = _load(old), _load(new)
    changes = diff_taxonomies(old_tree, new_tree)
    for change in changes:
        typer.echo(str(change))
    typer.echo(f"{old_tree.version} and {new_tree.version}: {len(changes)} differences")
    if old_tree.leaf_ids != new_tree.leaf_ids or old_tree.brand_labels != new_tree.brand_labels:
        typer.echo("labels differ, or their order: a model of one has no meaning for the other")


@taxonomy_app.command("migrate")
def migrate(
    old: OldTaxonomy,
    new: NewTaxonomy,
    manifest: Annotated[str, typer.Option(help="Manifest with labels of the old taxonomy.")],
    output: Annotated[str, typer.Option(help="The new manifest, a path or fsspec URL; the new taxonomy beside it.")],
    map_: Annotated[
        Path | None, typer.Option("--map", help="TOML that says where ids went that the new taxonomy lacks.")
    ] = None,
    changes: Annotated[
        Path | None, typer.Option(help="CSV for the new id of each old one, to join stored rows with.")
    ] = None,
) -> None:
    """Carry a manifest's labels over to another version of the taxonomy.

    Example: listing-vision taxonomy migrate old.json new.json --map changes.toml --manifest old.parquet --output
    data/new/manifest.parquet

    The map has the tables categories and brands with old = "new" (renamed, moved or merged), old = ["a", "b"] (split)
    and old = [] (retired).
    """
    from training.data.splits import save_split
    from training.data.taxonomy_changes import MigrationMap, plan_migration, write_changes
    from vision.manifest import Manifest

    new_tree = _load(new)
    migration = plan_migration(_load(old), new_tree, MigrationMap.load(map_) if map_ else MigrationMap())
    migrated, counts = migration.migrate(Manifest.load(manifest))
    save_split(migrated, new_tree, output)
    for change, number in counts.items():
        typer.echo(f"{number:8d} photos: {change}")
    if changes:
        write_changes(migration.changes, changes)
        typer.echo(f"written: {changes}")
    typer.echo(f"written: {output} ({len(migrated)} photos, taxonomy {new_tree.version})")


def _load(path: Path) -> "Taxonomy":
    from vision.taxonomy import Taxonomy

    return Taxonomy.load(path / "taxonomy.json" if path.is_dir() else path)
