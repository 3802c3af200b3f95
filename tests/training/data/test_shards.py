import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from training.cli.data import data_app, taxonomy_beside
from training.data.shards import write_shards
from vision.errors import ListingVisionError, ManifestError
from vision.manifest import COLUMNS, Manifest, read_photo
from vision.taxonomy import Taxonomy

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@pytest.fixture
def source(tmp_path):
    """Folder with a manifest of 30 photos of 12 listings, in formats that their names do not say."""
    folder = tmp_path / "source"
    (folder / "photos").mkdir(parents=True)
    rows = []
    for i in range(30):
        format_ = list(FORMATS)[i % 3]
        data = encode_image(create_scene(40 + i, 30), format_)
        (folder / "photos" / f"{i}.JPEG").write_bytes(data if i else b"not a photo")
        category = ("gala", "Fruit > Lemon", "")[i % 3]
        rows.append({"listing_id": f"m{i % 12}", "photo": f"photos/{i}.JPEG", "category": category, "brand": "Ácme"})
    Manifest.from_rows(rows, "").save(str(folder / "manifest.parquet"))
    create_small_taxonomy().save(folder / "taxonomy.json")
    return folder


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


def test_every_photo_is_in_the_shards_once_and_reads_back_equal(source, output):
    manifest = load(source)
    done = write_shards(manifest, create_small_taxonomy(), output, shard_bytes=8 << 10, seed=4)
    sharded = load(output)
    assert done.num_shards > 2
    assert values(done.manifest) == values(sharded)

    def samples(of):
        photos = [read_photo(of.photo_url(row)) for row in range(len(of))]
        return Counter((photo, *row.values()) for photo, row in zip(photos, values(of, but_photo=True), strict=True))

    assert samples(sharded) == samples(manifest)
    assert list_names(output) == sorted(
        ["manifest.parquet", "taxonomy.json", *(f"shard-{i:06d}.tar" for i in range(done.num_shards))]
    )
    taxonomy = taxonomy_beside(f"{output}/manifest.parquet", None)
    assert taxonomy == create_small_taxonomy()


def test_shards_are_what_webdataset_reads(source, output):
    write_shards(load(source), create_small_taxonomy(), output, shard_bytes=8 << 10)
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
        assert photo == read_photo(sharded.photo_url(row))
        assert json.loads(labels) == rows[row]
        endings[photo_name.partition(".")[2]] += 1
    # Row 0 is no photo and keeps the ending that it had.
    assert endings == {"jpg": 9, "png": 10, "webp": 10, "jpeg": 1}


def test_shards_keep_to_their_size_and_listings_to_each_other(source, tmp_path):
    out = tmp_path / "out"
    write_shards(load(source), create_small_taxonomy(), str(out), shard_bytes=8 << 10)
    for path in out.glob("shard-*.tar"):
        # Plus what ends a tar file, filled up to a record.
        assert path.stat().st_size <= (8 << 10) + 2 * tarfile.RECORDSIZE
    listings = load(out).column("listing_id").to_pylist()
    changes = sum(a != b for a, b in itertools.pairwise(listings))
    assert changes == 11
    assert listings != sorted(listings)


def test_the_same_seed_writes_the_same_bytes(source, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_shards(load(source), create_small_taxonomy(), str(tmp_path / name), seed=seed)
    a, b, c = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in "abc")
    assert a == b != c


def test_shards_can_be_sharded_again(source, tmp_path):
    write_shards(load(source), create_small_taxonomy(), str(tmp_path / "a"))
    write_shards(load(tmp_path / "a"), create_small_taxonomy(), str(tmp_path / "b"), seed=9)
    photos = [Counter(data for _, name, data in list_members(str(tmp_path / f)) if "json" not in name) for f in "ab"]
    assert photos[0] == photos[1]


def test_photos_that_cannot_be_read_are_all_named_and_nothing_is_left(source, output):
    for i in (3, 17):
        (source / "photos" / f"{i}.JPEG").unlink()
    with pytest.raises(ManifestError, match="2 photos cannot be read; mend them or leave them out") as caught:
        write_shards(load(source), create_small_taxonomy(), output, shard_bytes=4 << 10)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"row 4", "row 18"}
    assert list_names(output) == []

    done = write_shards(load(source), create_small_taxonomy(), output, skip_unreadable=True)
    assert len(done.unreadable) == 2
    assert len(load(output)) == 28
    assert sum(name.endswith(".json") for _, name, _ in list_members(output)) == 28


def test_a_crash_leaves_nothing_under_a_final_name(source, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        write_shards(load(source), create_small_taxonomy(), str(tmp_path / "out"), shard_bytes=8 << 10)
    assert list_names(str(tmp_path / "out")) == ["taxonomy.json"]


def test_no_readable_photo_at_all_is_refused(tmp_path):
    manifest = Manifest.from_rows([{"listing_id": "1", "photo": "none.jpg"}], str(tmp_path))
    with pytest.raises(ManifestError, match="no photo can be read"):
        write_shards(manifest, create_small_taxonomy(), str(tmp_path / "out"), skip_unreadable=True)


def test_shards_of_two_runs_never_share_a_folder(source, output):
    write_shards(load(source), create_small_taxonomy(), output)
    with pytest.raises(ManifestError, match=r"already holds manifest\.parquet; give another folder"):
        write_shards(load(source), create_small_taxonomy(), output)


def test_the_verb_shards_and_says_what_it_left_out(source, tmp_path):
    (source / "photos" / "5.JPEG").unlink()
    words = ["shard", str(source / "manifest.parquet"), "--output", str(tmp_path / "out"), "--shard-mb", "1"]
    refused = CliRunner().invoke(data_app, words)
    assert isinstance(refused.exception, ManifestError)
    done = CliRunner().invoke(data_app, [*words, "--skip-unreadable"])
    assert done.exit_code == 0
    assert "29 photos in 1 shards, 1 left out" in done.stdout
    assert "left out: row 6: " in done.stderr
    assert Taxonomy.load(tmp_path / "out" / "taxonomy.json") == create_small_taxonomy()


def test_the_verb_splits_into_another_folder(source, tmp_path):
    source_manifest = str(source / "manifest.parquet")
    output = str(tmp_path / "there" / "split.parquet")
    Path(output).parent.mkdir()
    done = CliRunner().invoke(
        data_app, ["split", source_manifest, "--output", output, "--val", "0.4", "--test", "0.4", "--seed", "1"]
    )
    assert done.exit_code == 0, done.exception
    manifest = Manifest.load(output)
    assert [read_photo(manifest.photo_url(row)) for row in (0, 7)] == [
        (source / "photos" / f"{i}.JPEG").read_bytes() for i in (0, 7)
    ]
    counted = [line.split() for line in done.stdout.splitlines()[:4]]
    assert [line[0] for line in counted] == ["train", "val", "calibrate", "test"]
    assert sum(int(line[1]) for line in counted) == 30
    assert sum(int(line[3]) for line in counted) == 12


def test_the_verb_warns_of_leaves_that_are_not_trained(source, tmp_path):
    rows = [
        {"listing_id": str(i), "photo": "a", "category": "gala", "listed_at": f"2026-01-{i + 1:02d}"} for i in range(9)
    ]
    Manifest.from_rows(
        [*rows, {**rows[0], "listing_id": "new", "category": "lemon", "listed_at": "2026-02-01"}], ""
    ).save(str(source / "times.csv"))
    done = CliRunner().invoke(
        data_app, ["split", str(source / "times.csv"), "--output", str(source / "split.csv"), "--by", "time"]
    )
    assert done.exit_code == 0, done.exception
    assert "warning: val or test has leaf categories that train lacks: Fruit > Lemon" in done.stderr
    assert Manifest.load(str(source / "split.csv")).column("split").to_pylist() == ["train"] * 8 + ["val", "test"]


def test_the_verb_never_writes_over_what_it_reads(source, monkeypatch):
    monkeypatch.chdir(source)
    before = (source / "manifest.parquet").read_bytes()
    done = CliRunner().invoke(data_app, ["split", "manifest.parquet", "--output", str(source / "manifest.parquet")])
    assert isinstance(done.exception, ListingVisionError)
    assert "is the manifest that is read" in str(done.exception)
    assert (source / "manifest.parquet").read_bytes() == before


def test_a_manifest_at_a_url_without_a_taxonomy_is_named(tmp_path):
    url = f"memory://{tmp_path.name}/manifest.parquet"
    with pytest.raises(ListingVisionError, match=r"taxonomy memory://.*/taxonomy\.json cannot be read .*--taxonomy"):
        taxonomy_beside(url, None)


def test_neighbouring_listings_are_spread_over_the_shards(tmp_path):
    rows = [{"listing_id": str(i // 2), "photo": f"{i}.jpg"} for i in range(400)]
    for row in rows:
        (tmp_path / row["photo"]).write_bytes(row["photo"].encode())
    sharded = write_shards(Manifest.from_rows(rows, str(tmp_path)), create_small_taxonomy(), str(tmp_path / "shards"))
    order = [int(read_photo(sharded.manifest.photo_url(row)).removesuffix(b".jpg")) for row in range(400)]
    assert sorted(order) == list(range(400))
    assert abs(np.corrcoef(order, np.arange(400))[0, 1]) < 0.2
