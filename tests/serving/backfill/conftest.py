"""A stored marketplace: listings with good photos and bad ones, and what a backfill of it must answer."""

import csv
import shutil
from pathlib import Path

import pytest

from vision.manifest import Manifest


@pytest.fixture
def market(tmp_path, synthetic_dataset):
    """Folder with manifest.csv, whose rows are not in the order of the listings, and the photos."""
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    folder = tmp_path / "market"
    rows = [
        {"listing_id": str(listing_id), "photo": str(photo)}
        for listing_id, photo in zip(
            manifest.column("listing_id").to_pylist(), manifest.column("photo").to_pylist(), strict=True
        )
    ]
    for row in rows:
        target = folder / row["photo"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(synthetic_dataset / row["photo"], target)
    # Every other row first: the photos of a listing lie apart.
    write_manifest(folder / "manifest.csv", rows[::2] + rows[1::2])
    return folder


def write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["listing_id", "photo"])
        writer.writeheader()
        writer.writerows(rows)


def read_manifest(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
