import hashlib

import pytest

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


@pytest.fixture
def listing_folder(tmp_path):
    """Folder with a manifest of 30 photos of 12 listings, in formats that their names do not say."""
    folder = tmp_path / "source"
    (folder / "photos").mkdir(parents=True)
    rows = []
    for i in range(30):
        format_ = ("JPEG", "PNG", "WEBP")[i % 3]
        data = encode_image(create_scene(40 + i, 30), format_)
        (folder / "photos" / f"{i}.JPEG").write_bytes(data if i else b"not a photo")
        category = ("gala", "Fruit > Lemon", "")[i % 3]
        rows.append({"listing_id": f"m{i % 12}", "photo": f"photos/{i}.JPEG", "category": category, "brand": "Ácme"})
    Manifest.from_rows(rows, "").save(str(folder / "manifest.parquet"))
    create_small_taxonomy().save(folder / "taxonomy.json")
    return folder


@pytest.fixture(scope="session")
def mislabelled_dataset(synthetic_dataset, tmp_path_factory):
    """Folder of the drawn photos with six categories that were changed, and the rows (from 1) that were."""
    folder = tmp_path_factory.mktemp("mislabelled")
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    rows = manifest.table.to_pylist()
    listings = sorted({row["listing_id"] for row in rows}, key=lambda id_: hashlib.sha256(id_.encode()).digest())
    names = sorted({row["category"] for row in rows})
    wrong = set(listings[:6])
    for row in rows:
        row["photo"] = f"{synthetic_dataset}/{row['photo']}"
        if row["listing_id"] in wrong:
            row["category"] = names[(names.index(row["category"]) + 5) % len(names)]
    Manifest.from_rows(rows, str(folder)).save(str(folder / "manifest.parquet"))
    Taxonomy.load(synthetic_dataset / "taxonomy.json").save(folder / "taxonomy.json")
    return folder, {i for i, row in enumerate(rows, start=1) if row["listing_id"] in wrong}
