import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from training.cli.data import load_taxonomy
from training.data.shards import write_shards
from vision.errors import ManifestError
from vision.images import read_size_px
from vision.manifest import COLUMNS, Manifest
from vision.photo_files import read_photo


@pytest.fixture(params=["path", "memory"])
def output(request, tmp_path):
    return str(tmp_path / "out") if request.param == "path" else f"memory://{tmp_path.name}/out"


def load(folder):
    return Manifest.load(f"{folder}/manifest.parquet")


def list_members(output):
    """Every member of every shard, as tarfile alone reads them."""
    fs, folder = fsspec.core.url_to_fs(output)
    for path in sorted(fs.glob(f"{folder}/shard-*.tar")):
        with tarfile.open(fileobj=io.BytesIO(fs.cat_file(path))) as tar:
            for member in tar:
                yield Path(path).name, member.name, tar.extractfile(member).read()


def list_names(output):
    fs, folder = fsspec.core.url_to_fs(output)
    return sorted(Path(path).name for path in fs.ls(folder, detail=False))


def values(manifest, *, but_photo=False):
    rows = manifest.table.to_pylist()
    return [{name: row[name] for name in COLUMNS if not (but_photo and name == "photo")} for row in rows]


def test_every_photo_is_in_the_shards_once_and_reads_back_equal(listing_folder, output):
    manifest = load(listing_folder)
    done = write_shards(manifest, create_small_taxonomy(), output, shard_bytes=8 << 10, seed=4)
    sharded = load(output)
    assert done.num_shards > 2
    assert values(done.manifest) == values(sharded)

    def samples(of):
        photos = [read_photo(of.get_photo_url(row)) for row in range(len(of))]
        return Counter((photo, *row.values()) for photo, row in zip(photos, values(of, but_photo=True), strict=True))

    assert samples(sharded) == samples(manifest)
    assert list_names(output) == sorted(
        ["manifest.parquet", "taxonomy.json", *(f"shard-{i:06d}.tar" for i in range(done.num_shards))]
    )
    taxonomy = load_taxonomy(f"{output}/manifest.parquet", None)
    assert taxonomy == create_small_taxonomy()


def test_shards_are_what_webdataset_reads(listing_folder, output):
    write_shards(load(listing_folder), create_small_taxonomy(), output, shard_bytes=8 << 10)
    sharded = load(output)
    rows = values(sharded, but_photo=True)
    members = list(list_members(output))
    keys = [name.partition(".")[0] for _, name, _ in members]
    assert keys == sorted(keys)
    assert keys[::2] == keys[1::2] == [f"{row:09d}" for row in range(30)]
    endings = Counter()
    for row in range(30):
        (shard, photo_name, photo), (other_shard, _, labels) = members[2 * row : 2 * row + 2]
        assert shard == other_shard == sharded.column("photo")[row].as_py().partition("#")[0]
        assert photo == read_photo(sharded.get_photo_url(row))
        assert json.loads(labels) == rows[row]
        endings[photo_name.partition(".")[2]] += 1
    # Row 0 is no photo and keeps the ending that it had.
    assert endings == {"jpg": 9, "png": 10, "webp": 10, "jpeg": 1}


def test_shards_keep_to_their_size_and_listings_to_each_other(listing_folder, tmp_path):
    out = tmp_path / "out"
    write_shards(load(listing_folder), create_small_taxonomy(), str(out), shard_bytes=8 << 10)
    for path in out.glob("shard-*.tar"):
        # Plus what ends a tar file, filled up to a record.
        assert path.stat().st_size <= (8 << 10) + 2 * tarfile.RECORDSIZE
    listings = load(out).column("listing_id").to_pylist()
    changes = sum(a != b for a, b in itertools.pairwise(listings))
    assert changes == 11
    assert listings != sorted(listings)


def test_the_same_seed_writes_the_same_bytes(listing_folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_shards(load(listing_folder), create_small_taxonomy(), str(tmp_path / name), seed=seed)
    a, b, c = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in "abc")
    assert a == b != c


def test_shards_can_be_sharded_again(listing_folder, tmp_path):
    write_shards(load(listing_folder), create_small_taxonomy(), str(tmp_path / "a"))
    write_shards(load(tmp_path / "a"), create_small_taxonomy(), str(tmp_path / "b"), seed=9)
    photos = [Counter(data for _, name, data in list_members(str(tmp_path / f)) if "json" not in name) for f in "ab"]
    assert photos[0] == photos[1]


def test_photos_that_cannot_be_read_are_all_named_and_nothing_is_left(listing_folder, output):
    for i in (3, 17):
        (listing_folder / "photos" / f"{i}.JPEG").unlink()
    with pytest.raises(ManifestError, match="2 photos cannot be read; mend them or give --skip-unreadable") as caught:
        write_shards(load(listing_folder), create_small_taxonomy(), output, shard_bytes=4 << 10)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"row 4", "row 18"}
    assert list_names(output) == []

    done = write_shards(load(listing_folder), create_small_taxonomy(), output, skip_unreadable=True)
    assert len(done.unreadable) == 2
    assert len(load(output)) == 28
    assert sum(name.endswith(".json") for _, name, _ in list_members(output)) == 28


def test_a_crash_leaves_nothing_under_a_final_name(listing_folder, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        write_shards(load(listing_folder), create_small_taxonomy(), str(tmp_path / "out"), shard_bytes=8 << 10)
    assert list_names(str(tmp_path / "out")) == ["taxonomy.json"]


def test_no_readable_photo_at_all_is_refused(tmp_path):
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": "none.jpg"}], str(tmp_path))
    with pytest.raises(ManifestError, match="no photo can be read"):
        write_shards(manifest, create_small_taxonomy(), str(tmp_path / "out"), skip_unreadable=True)


def test_shards_of_two_runs_never_share_a_folder(listing_folder, output):
    write_shards(load(listing_folder), create_small_taxonomy(), output)
    with pytest.raises(ManifestError, match=r"already holds manifest\.parquet; give another folder"):
        write_shards(load(listing_folder), create_small_taxonomy(), output)


def test_neighbouring_listings_are_spread_over_the_shards(tmp_path):
    rows = [{"listing_id": str(i // 2), "photo": f"{i}.jpg"} for i in range(400)]
    for row in rows:
        (tmp_path / row["photo"]).write_bytes(row["photo"].encode())
    sharded = write_shards(Manifest.from_rows(rows, str(tmp_path)), create_small_taxonomy(), str(tmp_path / "shards"))
    order = [int(read_photo(sharded.manifest.get_photo_url(row)).removesuffix(b".jpg")) for row in range(400)]
    assert sorted(order) == list(range(400))
    assert abs(np.corrcoef(order, np.arange(400))[0, 1]) < 0.2


def test_photos_become_renditions_and_those_that_cannot_are_named(synthetic_dataset, listing_folder, tmp_path):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).take(np.arange(5))
    write_shards(manifest, create_small_taxonomy(), str(tmp_path / "small"), max_px=16)
    small = load(tmp_path / "small")
    sizes = [read_size_px(read_photo(small.get_photo_url(row))) for row in range(len(small))]
    assert [min(size) for size in sizes] == [16] * 5
    # These are no photos, which matters only to renditions.
    with pytest.raises(ManifestError, match=r"row 1: .*0\.JPEG: its first bytes .* are those of no accepted format"):
        write_shards(load(listing_folder), create_small_taxonomy(), str(tmp_path / "none"), max_px=16)
