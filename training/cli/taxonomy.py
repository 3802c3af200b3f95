"""The verbs of `listing-vision taxonomy`: compare two versions, and carry labels, models and stored rows over."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.startup import load_torch
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

if TYPE_CHECKING:
    from training.data.taxonomy_changes import Migration
    from vision.taxonomy import Taxonomy

__all__ = ["taxonomy_app"]

taxonomy_app = create_cli_app("Compare two versions of a taxonomy, and carry labels, models and stored rows over.")

OldTaxonomy = Annotated[Path, typer.Argument(help="The old taxonomy.json, or a folder or bundle with one.")]
NewTaxonomy = Annotated[Path, typer.Argument(help="The new taxonomy.json, or a folder or bundle with one.")]
Map = Annotated[Path | None, typer.Option("--map", help="TOML that says where ids went that the new taxonomy lacks.")]


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
    typer.echo(f"{old_tree.version} and {new_tree.version}: {format_count(len(changes), 'difference')}")
    if old_tree.leaf_ids != new_tree.leaf_ids or old_tree.brand_labels != new_tree.brand_labels:
        typer.echo("labels differ, or their order: a model of one has no meaning for the other")


@taxonomy_app.command("migrate")
def migrate(
    old: OldTaxonomy,
    new: NewTaxonomy,
    manifest: Annotated[str, typer.Option(help="Manifest with labels of the old taxonomy.")],
    output: Annotated[str, typer.Option(help="The new manifest, a path or fsspec URL; the new taxonomy beside it.")],
    map_: Map = None,
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
    from training.data.taxonomy_changes import write_changes
    from vision.manifest import Manifest

    new_tree = _load(new)
    migration = _plan(_load(old), new_tree, map_)
    migrated, counts = migration.migrate(Manifest.load(manifest))
    save_split(migrated, new_tree, output)
    for change, number in counts.items():
        typer.echo(f"{format_count(number, 'photo')}: {change}")
    if changes:
        write_changes(migration.changes, changes)
        typer.echo(f"written: {changes}")
    typer.echo(f"written: {output} ({format_count(len(migrated), 'photo')}, taxonomy {new_tree.version})")


@taxonomy_app.command("migrate-bundle")
def migrate_bundle(
    bundle: Annotated[Path, typer.Argument(help="A bundle of the old taxonomy; it stays as it is.")],
    new: NewTaxonomy,
    output: Annotated[Path, typer.Option("--output", help="Folder of the new bundle; must not exist.")],
    map_: Map = None,
) -> None:
    """Carry a model over to another version of its taxonomy, without training.

    Heads keep the rows of classes that survive, share those that were split, join those that were merged, and begin
    added ones so that they are never the likeliest. Guarantees stay where only names changed.

    Example: listing-vision taxonomy migrate-bundle bundles/old new.json --map changes.toml --output bundles/new
    """
    load_torch()
    from training.export.migrate_bundle import migrate_bundle as run
    from vision.bundle import load_bundle

    source = load_bundle(bundle)
    migrated = run(source, _plan(source.taxonomy, _load(new), map_), output)
    for kind, carried in (("categories", migrated.categories_carried), ("brand", migrated.brand_carried)):
        typer.echo(f"guarantees, {kind}: {'carried over' if carried else 'void; run `listing-vision calibrate`'}")
    if migrated.added:
        typer.echo(f"never seen, and never predicted before training: {', '.join(migrated.added)}")
    info = migrated.bundle.info
    typer.echo(f"bundle {output}: {info.model_name} {info.model_version}, taxonomy {info.taxonomy_version}")


@taxonomy_app.command("migrate-rows")
def migrate_rows(
    old: OldTaxonomy,
    new: NewTaxonomy,
    rows: Annotated[str, typer.Option(help="Folder of outcomes, or the output of a backfill; a path or fsspec URL.")],
    output: Annotated[str, typer.Option("--output", help="Another folder, for the same tables with the new ids.")],
    map_: Map = None,
) -> None:
    """Carry stored suggestions and outcomes over to another version of the taxonomy.

    Example: listing-vision taxonomy migrate-rows old.json new.json --map changes.toml --rows backfill --output
    backfill-new
    """
    from training.data.migrated_rows import migrate_files

    migration = _plan(_load(old), _load(new), map_)
    for what, number in migrate_files(rows, output, migration).items():
        typer.echo(f"{number:8d} rows {what}")
    typer.echo(f"written: {output} (taxonomy {migration.new.version})")


def _plan(old: "Taxonomy", new: "Taxonomy", map_: Path | None) -> "Migration":
    from training.data.taxonomy_changes import MigrationMap, plan_migration

    return plan_migration(old, new, MigrationMap.load(map_) if map_ else MigrationMap())


def _load(path: Path) -> "Taxonomy":
    from vision.taxonomy import Taxonomy

    return Taxonomy.load(path / "taxonomy.json" if path.is_dir() else path)
