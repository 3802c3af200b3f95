"""Published data sets turned into a listing manifest and a taxonomy, and what every importer shares."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from vision.errors import ManifestError
from vision.manifest import Manifest
from vision.taxonomy import PATH_SEPARATOR, Brand, Category, Taxonomy, create_slug, normalize_name

__all__ = [
    "GROCERY_BRANDS",
    "build_brands",
    "build_taxonomy",
    "compute_version",
    "import_grocery_store",
    "save_dataset",
]

# Klasson et al., WACV 2019. Read off the package names; the data set itself has no brand column.
GROCERY_BRANDS = ("Alpro", "Arla", "Bravo", "Garant", "God Morgon", "Oatly", "Tropicana", "Valio", "Yoggi")
_PUBLISHED_SPLITS = ("train", "val", "test")


def import_grocery_store(source: Path, *, iconic: bool = False) -> tuple[Manifest, Taxonomy]:
    """The Grocery Store data set, a listing a photo, in its own splits; photo paths are absolute.

    Args:
        source: the published repository's folder, or its `dataset` folder.
        iconic: whether the shop's own photo of each class, which is in no published split, goes into train.

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
    taxonomy = build_taxonomy("grocery-store-1", paths.values(), build_brands(GROCERY_BRANDS))
    listed = []
    for split in _PUBLISHED_SPLITS:
        for line in (root / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            photo, fine, _coarse = (part.strip() for part in line.split(","))
            listed.append((f"{split}.txt", photo, int(fine), split))
    if iconic:
        listed += [("classes.csv", c["Iconic Image Path"].lstrip("/"), int(c["Class ID"]), "train") for c in classes]
    problems = [
        f"{table} names {photo}, which is missing" for table, photo, _, _ in listed if not (root / photo).is_file()
    ]
    rows = [
        {
            "listing_id": f"{split}-{Path(photo).stem}",
            "photo": str((root / photo).resolve()),
            "category": " > ".join(paths[fine]),
            "brand": _detect_brand(paths[fine], taxonomy.no_brand),
            "split": split,
        }
        for _, photo, fine, split in listed
    ]
    if problems:
        raise ManifestError(f"{root} is incomplete:", problems)
    return Manifest.from_rows(rows, str(root)), taxonomy


def _detect_brand(path: Sequence[str], no_brand: str) -> str:
    if path[0] != "Packages":
        return no_brand
    for brand in GROCERY_BRANDS:
        if path[-1].startswith(brand + " "):
            return brand
    raise ManifestError(f"the package {path[-1]!r} begins with none of the brands {', '.join(GROCERY_BRANDS)}")


def build_taxonomy(
    version: str, paths: Iterable[Sequence[str]], brands: Iterable[Brand] = (), *, language: str = "en"
) -> Taxonomy:
    """A taxonomy from root-to-node paths of names in one language; ids are slugs of the path.

    Raises:
        ManifestError: two different names get the same id, or a name is empty; it lists all of them.
    """
    categories: dict[str, Category] = {}
    problems: dict[str, None] = {}
    for path in paths:
        parent_id = None
        for depth, name in enumerate(path, start=1):
            category_id = "/".join(create_slug(part) for part in path[:depth])
            known = categories.setdefault(
                category_id, Category(id=category_id, names={language: name}, parent_id=parent_id)
            )
            if not create_slug(name):
                problems[f"category {PATH_SEPARATOR.join(path)!r} has an empty name; give it one"] = None
            elif normalize_name(known.name) != normalize_name(name):
                problems[f"category {name!r} gets the id {category_id!r}, which {known.name!r} has; rename one"] = None
            parent_id = category_id
    if problems:
        raise ManifestError(f"taxonomy {version!r} cannot be made:", list(problems))
    return Taxonomy(version=version, categories=tuple(categories.values()), brands=tuple(brands))


def build_brands(names: Iterable[str], *, language: str = "en") -> tuple[Brand, ...]:
    """Brands from their names, the usual spelling first: a name with the id of an earlier one is its alias."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        known = spellings.setdefault(create_slug(name), [])
        if normalize_name(name) not in map(normalize_name, known):
            known.append(name)
    return tuple(
        Brand(id=id_, names={language: first}, aliases=tuple(others)) for id_, (first, *others) in spellings.items()
    )


def compute_version(prefix: str, paths: Iterable[Sequence[str]], brands: Iterable[str] = ()) -> str:
    """Return a taxonomy version that differs where the categories or brands do."""
    content = json.dumps([[list(path) for path in paths], list(brands)], ensure_ascii=False)
    return f"{prefix}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def save_dataset(manifest: Manifest, taxonomy: Taxonomy, folder: Path) -> Path:
    """Write `taxonomy.json` and `manifest.parquet`, with paths adapted to the folder; return the manifest's path.

    The manifest comes last: where there is one, its taxonomy is there too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taxonomy.save(folder / "taxonomy.json")
    manifest.rebase(str(folder)).save(str(folder / "manifest.parquet"))
    return folder / "manifest.parquet"
