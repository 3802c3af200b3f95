"""The verbs of `listing-vision data`, called in this process."""

import csv
import shutil

import pytest
from typer.testing import CliRunner

from tests.support.helpers import create_scene, create_small_taxonomy, encode_image
from tests.support.pages import ParsedPage
from training.cli.data import data_app, load_taxonomy
from training.cli.data import suspects as suspects_verb
from vision.errors import ListingVisionError, ManifestError
from vision.manifest import Manifest
from vision.photo_files import read_photo
from vision.taxonomy import Taxonomy


def test_the_verb_shards_and_says_what_it_left_out(listing_folder, tmp_path):
    (listing_folder / "photos" / "5.JPEG").unlink()
    words = ["shard", str(listing_folder / "manifest.parquet"), "--output", str(tmp_path / "out"), "--shard-mb", "1"]
    refused = CliRunner().invoke(data_app, words)
    assert isinstance(refused.exception, ManifestError)
    done = CliRunner().invoke(data_app, [*words, "--skip-unreadable"])
    assert done.exit_code == 0
    assert "29 photos in 1 shard, 1 left out" in done.stdout
    assert "left out: row 6: " in done.stderr
    assert Taxonomy.load(tmp_path / "out" / "taxonomy.json") == create_small_taxonomy()


def test_the_verb_splits_into_another_folder(listing_folder, tmp_path):
    source_manifest = str(listing_folder / "manifest.parquet")
    output = str(tmp_path / "there" / "split.parquet")
    done = CliRunner().invoke(
        data_app, ["split", source_manifest, "--output", output, "--val", "0.4", "--test", "0.4", "--seed", "1"]
    )
    assert done.exit_code == 0, done.exception
    assert load_taxonomy(output, None) == load_taxonomy(source_manifest, None)
    manifest = Manifest.load(output)
    assert [read_photo(manifest.get_photo_url(row)) for row in (0, 7)] == [
        (listing_folder / "photos" / f"{i}.JPEG").read_bytes() for i in (0, 7)
    ]
    counted = [line.split() for line in done.stdout.splitlines()[:4]]
    assert [line[0] for line in counted] == ["train", "val", "calibrate", "test"]
    assert sum(int(line[1]) for line in counted) == 30
    assert sum(int(line[3]) for line in counted) == 12


def test_the_verb_warns_of_leaves_that_are_not_trained(listing_folder, tmp_path):
    rows = [
        {"listing_id": str(i), "photo": "a", "category": "gala", "listed_at": f"2026-01-{i + 1:02d}"} for i in range(9)
    ]
    Manifest.from_rows(
        [*rows, {**rows[0], "listing_id": "new", "category": "lemon", "listed_at": "2026-02-01"}], ""
    ).save(str(listing_folder / "times.csv"))
    done = CliRunner().invoke(
        data_app,
        [
            "split",
            str(listing_folder / "times.csv"),
            *("--output", str(listing_folder / "split.csv")),
            *("--by", "time", "--calibrate", "0"),
        ],
    )
    assert done.exit_code == 0, done.exception
    assert "warning: another split has leaf categories that train lacks: Fruit > Lemon" in done.stderr
    assert Manifest.load(str(listing_folder / "split.csv")).column("split").to_pylist() == ["train"] * 8 + [
        "val",
        "test",
    ]


def test_a_published_split_is_kept(listing_folder):
    rows = [{"listing_id": f"m{i}", "photo": "a", "split": "test" if i < 20 else "train"} for i in range(200)]
    source, output = listing_folder / "published.csv", listing_folder / "split.csv"
    Manifest.from_rows(rows, "").save(str(source))
    done = CliRunner().invoke(data_app, ["split", str(source), "--output", str(output), "--keep", "test", "--val", "0"])
    assert done.exit_code == 0, done.exception
    found = Manifest.load(str(output)).column("split").to_pylist()
    assert found[:20] == ["test"] * 20
    assert set(found[20:]) == {"train", "calibrate"}


def test_a_small_folder_gets_a_calibrate_split_only_when_told(tmp_path):
    for number in range(60):
        photo = tmp_path / "photos" / ("val" if number < 6 else "train") / "Cups" / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(encode_image(create_scene(), "PNG"))
    (tmp_path / "photos" / "notes.txt").touch()
    for name, words in (("default", []), ("a_fifth", ["--calibrate", "0.2"])):
        output = tmp_path / name
        done = CliRunner().invoke(
            data_app, ["import", "folder", str(tmp_path / "photos"), "--output", str(output), *words]
        )
        assert done.exit_code == 0, done.exception
        assert "left out: files that are no photo: 1 (1 .txt), such as notes.txt" in done.stderr
        splits = Manifest.load(str(output / "manifest.parquet")).column("split").to_pylist()
        assert splits.count("val") == 6
        assert ("calibrate" in splits) == (name == "a_fifth")


def test_the_verb_never_writes_over_what_it_reads(listing_folder, monkeypatch):
    monkeypatch.chdir(listing_folder)
    before = (listing_folder / "manifest.parquet").read_bytes()
    done = CliRunner().invoke(
        data_app, ["split", "manifest.parquet", "--output", str(listing_folder / "manifest.parquet")]
    )
    assert isinstance(done.exception, ListingVisionError)
    assert "is the manifest that is read" in str(done.exception)
    assert (listing_folder / "manifest.parquet").read_bytes() == before


def test_the_verb_imports_a_table(tmp_path):
    lines = ["写真,大分類,小分類,split", *(f"{i}.jpg,婦人,靴,train" for i in range(80)), "v.jpg,婦人,,val", ",,,"]
    (tmp_path / "items.csv").write_bytes("\r\n".join(lines).encode("cp932"))
    words = ["import", "table", str(tmp_path / "items.csv"), "--output", str(tmp_path / "out"), "--language", "ja"]
    words += ["--column", "photo=写真", "--column", "category=大分類", "--column", "category=小分類"]
    done = CliRunner().invoke(data_app, words)
    assert done.exit_code == 0, done.exception
    assert "left out: 1 row without a photo" in done.stderr
    manifest = Manifest.load(str(tmp_path / "out" / "manifest.parquet"))
    assert set(manifest.column("split").to_pylist()) == {"train", "val"}
    assert manifest.get_photo_url(0) == f"{tmp_path}/0.jpg"
    assert load_taxonomy(str(tmp_path / "out" / "manifest.parquet"), None).leaf_ids == ("婦人/靴",)
    refused = CliRunner().invoke(data_app, [*words, "--column", "brand"])
    assert (refused.exit_code, "is not COLUMN=NAME" in refused.output) == (2, True)


def test_the_verb_checks_labels_first_and_names_every_place_in_a_file(listing_folder, tmp_path):
    rows = [{"listing_id": str(i), "photo": f"gone{i}.jpg", "category": "gala"} for i in range(5)]
    Manifest.from_rows(rows, "").save(str(listing_folder / "gone.csv"))
    findings = tmp_path / "findings.csv"
    done = CliRunner().invoke(data_app, ["check", str(listing_folder / "gone.csv"), "--findings", str(findings)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["photos", "by", "class", "(none)", "all"]
    assert lines[1].split() == ["Fruit", ">", "Apple", ">", "Gala", "5", "5"]
    assert "split_missing: no photo has a split: `listing-vision data split` makes them" in lines
    assert any(line.startswith("bad_photo: PHOTO_MISSING: 5 in all, such as row 1: ") for line in lines)
    assert "     5  bad_photo (a photo that cannot be used)" in lines
    assert len([line for line in findings.read_text().splitlines() if line.startswith("bad_photo")]) == 5


def test_a_manifest_at_a_url_without_a_taxonomy_is_named(tmp_path):
    url = f"memory://{tmp_path.name}/manifest.parquet"
    with pytest.raises(ListingVisionError, match=r"taxonomy memory://.*/taxonomy\.json cannot be read .*--taxonomy"):
        load_taxonomy(url, None)


def test_the_verb_writes_a_table_and_a_page_of_its_own(mislabelled_dataset, tmp_path, capsys):
    folder, wrong = mislabelled_dataset
    shutil.copy(folder / "taxonomy.json", tmp_path)
    rows = Manifest.load(str(folder / "manifest.parquet")).table.to_pylist()
    manifest = Manifest.from_rows([row | {"listing_id": f"<script>{row['listing_id']}"} for row in rows], "")
    path = tmp_path / "manifest.parquet"
    manifest.save(str(path))
    output = tmp_path / "reports" / "suspects"
    suspects_verb(str(path), output, input_px=96, folds=5, max_shown=3, model=None, taxonomy=None)

    said = capsys.readouterr().out
    assert f"suspected category labels of {len(manifest)} compared" in said
    assert "next: open" in said
    with (output / "suspects.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        "field",
        "rank",
        "row",
        "photo",
        "listing_id",
        "given",
        "suggested",
        "given_probability",
        "suggested_probability",
    ]
    assert {int(row["row"]) for row in table if row["field"] == "category"} & wrong
    text = (output / "suspects.html").read_text()
    page = ParsedPage(text)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # the report's own
    assert "&lt;script&gt;" in text
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if "href" in attrs)
    assert "link" not in {tag for tag, _ in page.tags}
    per_field = [sum(row["field"] == field for row in table) for field in ("category", "brand")]
    assert sum(tag == "li" for tag, _ in page.tags) == sum(min(3, num) for num in per_field)
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize(
    ("importer", "default"), [("grocery-store", "[default: 0.0]"), ("folder", "a tenth"), ("table", "a tenth")]
)
def test_the_help_of_an_importer_names_one_default_of_the_calibrate_share(importer, default):
    shown = CliRunner().invoke(data_app, ["import", importer, "--help"], env={"COLUMNS": "400"}).stdout
    (line,) = [line for line in shown.splitlines() if "--calibrate " in line]
    assert default in line
    assert line.lower().count("default:") == 1
