"""Published data sets and plain folders turned into a listing manifest and a taxonomy."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

from vision.errors import ManifestError
from vision.manifest import SPLITS, Manifest
from vision.taxonomy import Brand, Category, Taxonomy, create_slug

__all__ = ["GROCERY_BRANDS", "build_taxonomy", "import_folder", "import_grocery_store"]

_log = logging.getLogger(__name__)

_PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic", ".heif")

# Klasson et al., WACV 2019. Read off the package names; the data set itself has no brand column.
GROCERY_BRANDS = ("Alpro", "Arla", "Bravo", "Garant", "God Morgon", "Oatly", "Tropicana", "Valio", "Yoggi")
_PUBLISHED_SPLITS = ("train", "val", "test")


def import_grocery_store(source: Path) -> tuple[Manifest, Taxonomy]:
    """The Grocery Store data set, a listing a photo, in its own splits; photo paths are absolute.

    Args:
        source: the published repository's folder, or its `dataset` folder.

    Raises:
        ManifestError: a file of the published layout is missing, or a listed photo is.
    """
    root = source / "dataset" if (source / "dataset").is_dir() else source
    for name in ("classes.csv", *(f"{split}.txt" for split in _PUBLISHED_SPLITS)):
        if not (root / name).is_file():
            raise ManifestError(f"{root / name} is missing; give the folder of the published Grocery Store data set")
    with (root / "classes.csv").open(newline="", encoding="utf-8") as file:
        classes = [{key.split(" (")[0]: value for key, value in row.items()} for row in csv.DictReader(file)]
    paths: dict[int, list[str]] = {}
    for row in classes:
        # The iconic photo's path is the only column that holds the top level (Fruit, Packages, Vegetables).
        top = Path(row["Iconic Image Path"]).parts[2]
        names = [top, row["Coarse Class Name"], row["Class Name"]]
        if names[1] == names[2]:
            names.pop()
        paths[int(row["Class ID"])] = [name.replace("-", " ") for name in names]
    taxonomy = build_taxonomy("grocery-store-1", list(paths.values()), GROCERY_BRANDS)
    rows, problems = [], []
    for split in _PUBLISHED_SPLITS:
        for line in (root / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            photo, fine, _coarse = (part.strip() for part in line.split(","))
            if not (root / photo).is_file():
                problems.append(f"{split}.txt names {photo}, which is missing")
            path = paths[int(fine)]
            rows.append(
                {
                    "listing_id": f"{split}-{Path(photo).stem}",
                    "photo": str((root / photo).resolve()),
                    "category": " > ".join(path),
                    "brand": _detect_brand(path, taxonomy.no_brand),
                    "split": split,
                }
            )
    if problems:
        raise ManifestError(f"{root} is incomplete:", problems)
    return Manifest.from_rows(rows, str(root)), taxonomy


def import_folder(source: Path) -> tuple[Manifest, Taxonomy]:
    """A `split/class/*.jpg` folder, a listing a photo, a flat taxonomy, brands not known.

    Raises:
        ManifestError: no such folder, or no photo in it.
    """
    files = sorted(path for split in SPLITS for path in (source / split).glob("*/*") if path.is_file())
    photos = [path for path in files if path.suffix.lower() in _PHOTO_ENDINGS]
    if len(photos) < len(files):
        others = sorted({path.suffix or path.name for path in files if path not in set(photos)})
        _log.warning("%d files are no photos and are left out: %s", len(files) - len(photos), ", ".join(others))
    if not photos:
        raise ManifestError(f"{source} holds no photo as split/class/name.jpg with split one of {', '.join(SPLITS)}")
    names = sorted({photo.parent.name for photo in photos})
    taxonomy = build_taxonomy(f"folder-{create_slug(source.resolve().name)}", [[name] for name in names], ())
    rows = [
        {
            "listing_id": str(photo.relative_to(source)),
            "photo": str(photo.resolve()),
            "category": photo.parent.name,
            "brand": "",
            "split": photo.parent.parent.name,
        }
        for photo in photos
    ]
    return Manifest.from_rows(rows, str(source)), taxonomy


def _detect_brand(path: Sequence[str], no_brand: str) -> str:
    if path[0] != "Packages":
        return no_brand
    for brand in GROCERY_BRANDS:
        if path[-1].startswith(brand + " "):
            return brand
    raise ManifestError(f"the package {path[-1]!r} begins with none of the brands {', '.join(GROCERY_BRANDS)}")


def build_taxonomy(version: str, paths: Sequence[Sequence[str]], brands: Sequence[str]) -> Taxonomy:
    """A taxonomy from root-to-leaf paths of names; ids are slugs of the path."""
    categories: dict[str, Category] = {}
    for path in paths:
        parent_id = None
        for depth, name in enumerate(path, start=1):
            category_id = "/".join(create_slug(part) for part in path[:depth])
            known = categories.setdefault(
                category_id, Category(id=category_id, names={"en": name}, parent_id=parent_id)
            )
            if not create_slug(name) or known.name != name:
                raise ManifestError(
                    f"category {name!r} gets the id {category_id!r}"
                    + (f", which {known.name!r} has" if create_slug(name) else "")
                    + "; rename one"
                )
            parent_id = category_id
    return Taxonomy(
        version=version,
        categories=tuple(categories.values()),
        brands=tuple(Brand(id=create_slug(name), names={"en": name}) for name in brands),
    )
