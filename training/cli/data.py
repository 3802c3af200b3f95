"""The verbs of `listing-vision data`: make, check, split and look through listing manifests."""

import logging
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from training.cli.startup import load_torch
from vision.errors import ListingVisionError
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

if TYPE_CHECKING:
    from training.data.label_errors import FieldLabelErrors
    from vision.manifest import Manifest
    from vision.taxonomy import Taxonomy

__all__ = ["data_app", "load_taxonomy"]

data_app = create_cli_app("Make and check listing manifests.")
import_app = create_cli_app("Turn a published data set or a folder into a manifest and a taxonomy.")
data_app.add_typer(import_app, name="import")

_log = logging.getLogger(__name__)

ManifestUrl = Annotated[str, typer.Argument(help="Manifest: Parquet, CSV or JSON Lines, a path or fsspec URL.")]
TaxonomyPath = Annotated[Path | None, typer.Option(help="Default: taxonomy.json beside the manifest.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for manifest.parquet and taxonomy.json.")]
Skip = Annotated[
    list[str] | None,
    typer.Option(help="Path or pattern of what to leave out, such as train/unsorted or */unsorted; several times."),
]
_CALIBRATE_HELP = "Share of the train listings that become the calibrate split, unless the data has one; 0: none."
Calibrate = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.9,
        help=f"{_CALIBRATE_HELP} Default: a tenth, where that is enough to certify on or there is no val split.",
    ),
]
PublishedCalibrate = Annotated[float, typer.Option(min=0, max=0.9, help=_CALIBRATE_HELP)]
Language = Annotated[str, typer.Option(help="BCP 47 tag of the names' language, such as ja.")]


@import_app.command("grocery-store")
def import_grocery_store(
    source: Annotated[Path, typer.Argument(help="The published repository's folder, or its dataset folder.")],
    output: Output,
    calibrate: PublishedCalibrate = 0.0,
    iconic: Annotated[
        bool, typer.Option("--iconic", help="Put the shop's own photo of each class into train; no split has them.")
    ] = False,
) -> None:
    """Import the Grocery Store data set (Klasson et al., WACV 2019), in its published splits.

    Example: listing-vision data import grocery-store ~/GroceryStoreDataset --output data/grocery
    """
    from training.data.importers import import_grocery_store as run
    from training.data.splits import carve_calibrate

    manifest, taxonomy = run(source, iconic=iconic)
    _save_dataset(carve_calibrate(manifest, share=calibrate), taxonomy, output)


@import_app.command("folder")
def import_folder(
    source: Annotated[Path, typer.Argument(help="A folder with split/class/name.jpg or class/name.jpg.")],
    output: Output,
    skip: Skip = None,
    language: Language = "en",
    calibrate: Calibrate = None,
) -> None:
    """Import folders of photos, one per category; folders inside a class are its subcategories.

    Example: listing-vision data import folder photos --output data/mine

    Splits are folders named train, val (valid, validation, dev), test and calibrate. What is left out is counted; a
    whole folder that would be left out is an error, unless --skip names it.
    """
    from training.data.folder_importer import import_folder as run
    from training.data.splits import carve_calibrate

    imported = run(source, skip=skip or (), language=language)
    for left_out in imported.left_out:
        typer.echo(f"left out: {left_out}", err=True)
    _save_dataset(carve_calibrate(imported.manifest, share=calibrate), imported.taxonomy, output)


@import_app.command("table")
def import_table(
    source: Annotated[str, typer.Argument(help="CSV (also Excel's), JSON Lines or Parquet, a path or fsspec URL.")],
    output: Output,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=NAME: which column of the table is photo, category, brand, listing_id, split, seller_id or "
            "listed_at; several times. Columns of these names are taken by themselves."
        ),
    ] = None,
    photos: Annotated[
        str, typer.Option(help="Folder or URL that relative photos start from. Default: the table's folder.")
    ] = "",
    separator: Annotated[str, typer.Option(help="Between the names of a category's path.")] = ">",
    language: Language = "en",
    no_brand: Annotated[str, typer.Option(help="What the table writes for a product without brand.")] = "no brand",
    other_brand: Annotated[
        str, typer.Option(help="What the table writes for a brand that is not to be learned.")
    ] = "other brand",
    encoding: Annotated[str, typer.Option(help="Of a CSV, such as cp1252. Default: UTF-8, UTF-16 or cp932.")] = "",
    calibrate: Calibrate = None,
) -> None:
    """Import a table of photos with category paths and brands by name; the taxonomy is made from them.

    Example: listing-vision data import table items.csv --column photo=画像 --column category=カテゴリ --language ja
    --output data/mine

    Levels of a category may be in several columns, from the root down: --column category=大分類 --column
    category=小分類.
    """
    from training.data.splits import carve_calibrate
    from training.data.table_importer import import_table as run

    columns: dict[str, list[str]] = {}
    for given in column or []:
        name, equals, found = given.partition("=")
        if not equals:
            raise typer.BadParameter(f"--column {given} is not COLUMN=NAME, such as photo=画像")
        columns.setdefault(name, []).append(found)
    imported = run(
        source,
        columns=columns,
        photos=photos,
        separator=separator,
        language=language,
        no_brand=no_brand,
        other_brand=other_brand,
        encoding=encoding,
    )
    for note in imported.notes:
        typer.echo(note, err=True)
    _save_dataset(carve_calibrate(imported.manifest, share=calibrate), imported.taxonomy, output)


@data_app.command("synthesize")
def synthesize(
    output: Output,
    train_listings: Annotated[int, typer.Option(min=1, help="Listings of the train split.")] = 300,
    val_listings: Annotated[int, typer.Option(min=1, help="Listings of the val split.")] = 420,
    test_listings: Annotated[int, typer.Option(min=1, help="Listings of the test split.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
) -> None:
    """Create synthetic listing photos of invented products and brands, without any data set.

    Example: listing-vision data synthesize --output data/synthetic
    """
    from training.data.synthetic import create_synthetic_dataset

    listings = {"train": train_listings, "val": val_listings, "test": test_listings}
    _save_dataset(*create_synthetic_dataset(output, listings=listings, seed=seed), output)


@data_app.command("check")
def check(
    manifest: ManifestUrl,
    taxonomy: TaxonomyPath = None,
    findings: Annotated[
        Path | None, typer.Option(help="CSV for every row and photo of every finding; shown are the first three.")
    ] = None,
) -> None:
    """Show the photos of each class and split, decode every photo, and list the problems; exits 1 if there are any.

    Example: listing-vision data check data/grocery/manifest.parquet

    Near duplicates, missing splits and classes with few photos are warnings.
    """
    from training.data.checks import KINDS, WARNINGS, check_labels, check_photos, write_findings
    from training.data.class_counts import count_classes
    from vision.manifest import Manifest

    loaded, tree = Manifest.load(manifest), load_taxonomy(manifest, taxonomy)
    typer.echo(count_classes(loaded, tree).format_table() + "\n")
    found = check_labels(loaded, tree)
    for finding in found:
        typer.echo(str(finding))
    for finding in check_photos(loaded):
        typer.echo(str(finding))
        found.append(finding)
    for kind, meaning in KINDS.items():
        number = sum(len(finding.places) for finding in found if finding.kind == kind)
        typer.echo(f"{number:6d}  {kind} ({meaning}{'; a warning' if kind in WARNINGS else ''})")
    typer.echo(f"{len(loaded):6d}  looked at")
    if findings:
        write_findings(found, findings)
        typer.echo(f"written: {findings}")
    if any(finding.kind not in WARNINGS for finding in found):
        raise typer.Exit(1)


@data_app.command("split")
def split(
    manifest: ManifestUrl,
    output: Annotated[str, typer.Option("--output", help="The new manifest, a path or fsspec URL.")],
    by: Annotated[
        Literal["listing", "seller", "time"],
        typer.Option(help="Unit that stays together; by time, the newest listings are the test split."),
    ] = "listing",
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the listings.")] = 0.1,
    calibrate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share reserved to certify thresholds; if 0, four fifths of val are used."),
    ] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the listings.")] = 0.1,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Split that stays as it is, such as a published test split; several times."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    taxonomy: TaxonomyPath = None,
) -> None:
    """Assign listings to splits. By listing or seller, new listings do not move earlier ones.

    Example: listing-vision data split data/mine/manifest.parquet --output data/mine/split.parquet --by seller

    With --keep test --keep val, only a calibrate split is carved out of train.
    """
    from training.data.splits import count_splits, find_untrained_leaves, save_split, split_manifest
    from vision.manifest import Manifest

    if _make_absolute(manifest) == _make_absolute(output):
        raise ListingVisionError(f"--output {output} is the manifest that is read; give another file")
    tree = load_taxonomy(manifest, taxonomy)
    chosen = split_manifest(
        Manifest.load(manifest), by=by, val=val, calibrate=calibrate, test=test, seed=seed, keep=keep or ()
    )
    save_split(chosen, tree, output)
    for name, (num_photos, num_listings) in count_splits(chosen).items():
        typer.echo(f"{name:<9} {num_photos:10d} photos {num_listings:10d} listings")
    missing = find_untrained_leaves(chosen, tree)
    if missing:
        named = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        typer.echo(f"warning: another split has leaf categories that train lacks: {named}", err=True)
    typer.echo(f"written: {output}")
    typer.echo(f"next: listing-vision data check {output}")


@data_app.command("shard")
def shard(
    manifest: ManifestUrl,
    output: Annotated[str, typer.Option("--output", help="Folder or fsspec URL for the shards; must not contain any.")],
    shard_mb: Annotated[int, typer.Option(min=1, help="Maximum size of a shard in MiB.")] = 256,
    max_px: Annotated[
        int | None, typer.Option(min=16, help="Shrink photos to this short side, as JPEG. Default: as they are.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the listings' order.")] = 0,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out photos that cannot be read.")
    ] = False,
    taxonomy: TaxonomyPath = None,
) -> None:
    """Pack photos into tar shards in a random order, with a manifest that every other verb reads.

    Example: listing-vision data shard data/mine/manifest.parquet --output data/mine-shards
    """
    from training.data.shards import write_shards
    from vision.manifest import Manifest

    tree = load_taxonomy(manifest, taxonomy)
    done = write_shards(
        Manifest.load(manifest),
        tree,
        output,
        shard_bytes=shard_mb << 20,
        max_px=max_px,
        seed=seed,
        skip_unreadable=skip_unreadable,
    )
    for line in done.unreadable:
        typer.echo(f"left out: {line}", err=True)
    target = posixpath.join(output, "manifest.parquet")
    typer.echo(
        f"{target}: {format_count(len(done.manifest), 'photo')} in {format_count(done.num_shards, 'shard')}, "
        f"{len(done.unreadable)} left out"
    )


@data_app.command("suspects")
def suspects(
    manifest: ManifestUrl,
    output: Annotated[Path, typer.Option("--output", help="Folder for suspects.csv and suspects.html.")],
    taxonomy: TaxonomyPath = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A bundle or a finished run to take features from, not one trained on these labels: it hides the "
            "mistakes that it memorised. Default: ImageNet features."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of parts; each is predicted from the others.")] = 5,
    input_px: Annotated[
        int | None, typer.Option(min=32, max=1024, help="Side of the photos. Default: 224, or the model's own.")
    ] = None,
    max_shown: Annotated[int, typer.Option(min=1, help="Maximum number of photos per field on the page.")] = 200,
) -> None:
    """Find photos whose category or brand label is probably wrong, for review by a person.

    Every label is compared with a prediction learned from the other listings (confident learning). OUTPUT/features
    keeps the features, so that a second run, after labels were corrected, decodes nothing.

    Example: listing-vision data suspects data/grocery/manifest.parquet --output reports/suspects
    """
    load_torch()
    import torch

    from training.data.label_errors import find_suspects, write_csv
    from training.data.label_errors_page import build_suspects_verdict, render_suspects
    from training.inference.features import extract_features, load_embedder
    from training.reporting.provenance import describe_manifest
    from vision.manifest import Manifest

    loaded, tree = Manifest.load(manifest), load_taxonomy(manifest, taxonomy)
    loaded.resolve_labels(tree, out_of_scope=True)  # unknown labels are named before an hour of decoding, not after
    embedder, preprocessing = load_embedder(model, input_px=input_px)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = extract_features(embedder, loaded, preprocessing, device=device, cache=output / "features")
    for photo in features.unusable:
        _log.warning("not used: %s", photo)
    found = find_suspects(loaded, tree, features, num_folds=folds)
    write_csv(found, output / "suspects.csv")
    provenance = {
        "model": str(model) if model else "ImageNet features",
        "counts": f"{format_count(len(set(loaded.column('listing_id').to_pylist())), 'listing')}, "
        f"{format_count(len(loaded), 'photo')}; {format_count(len(features.unusable), 'photo')} could not be used",
        **describe_manifest(manifest),
    }
    page = render_suspects(found, provenance, title=f"Suspected labels of {manifest}", max_shown=max_shown)
    (output / "suspects.html").write_text(page, encoding="utf-8")
    typer.echo("\n".join(build_suspects_verdict(found)) + "\n")
    for part in found:
        typer.echo(_format_summary(part))
    typer.echo(f"{len(features.unusable):6d}  photos could not be used")
    typer.echo(f"written: {output / 'suspects.csv'} (all), {output / 'suspects.html'} (with photos)")
    typer.echo(
        f"next: open {output / 'suspects.html'}, correct the labels in {manifest} that are wrong, and repeat this"
    )


def _save_dataset(manifest: "Manifest", taxonomy: "Taxonomy", output: Path) -> None:
    from training.data.importers import save_dataset

    path = save_dataset(manifest, taxonomy, output)
    splits = manifest.column("split").value_counts().to_pylist()
    counts = ", ".join(f"{entry['counts']} {entry['values'] or 'in no split'}" for entry in splits)
    typer.echo(
        f"{path}: {format_count(len(manifest), 'photo')} ({counts}), "
        f"{format_count(len(taxonomy.leaf_ids), 'leaf category')}, "
        f"{format_count(len(taxonomy.brands), 'brand')}"
    )
    if any(entry["values"] for entry in splits):
        typer.echo(f"next: listing-vision data check {path}")
    else:
        typer.echo(f"next: listing-vision data split {path} --output {output / 'split.parquet'}")


def _format_summary(part: "FieldLabelErrors") -> str:
    lines = [f"{len(part.suspects):6d}  suspected {part.field} labels of {part.num_compared} compared"]
    if part.num_compared:
        lines[0] += f"; the model agrees with {part.accuracy:.1%} of these"
    if part.num_unlabelled:
        lines.append(f"{part.num_unlabelled:6d}  photos without a {part.field} label")
    if part.num_inner:
        lines.append(f"{part.num_inner:6d}  photos with an inner {part.field}, which is no mistake")
    if part.num_rare:
        lines.append(
            f"{part.num_rare:6d}  photos of {len(part.rare_classes)} {part.field} labels with too few listings to "
            f"judge: {', '.join(part.rare_classes)}"
        )
    return "\n".join(lines)


def load_taxonomy(manifest: str, taxonomy: Path | None) -> "Taxonomy":
    from vision.taxonomy import Taxonomy

    if taxonomy is None and "://" in manifest:
        from vision.photo_files import read_photo

        url = posixpath.join(posixpath.dirname(manifest), "taxonomy.json")
        try:
            text = read_photo(url).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ListingVisionError(f"taxonomy {url} cannot be read ({error}); give --taxonomy") from error
        return Taxonomy.from_json(text, source=url)
    return Taxonomy.load(taxonomy or Path(manifest).parent / "taxonomy.json")


def _make_absolute(url: str) -> str:
    return url if "://" in url else os.path.realpath(url)
