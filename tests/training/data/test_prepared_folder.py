import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.helpers import create_scene, encode_image
from training.data.prepared_folder import prepare_folder
from training.data.splits import count_splits
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


@pytest.fixture
def write_photos(tmp_path):
    def write(*folders, count=40):
        for number, folder in enumerate(folders):
            (tmp_path / "photos" / folder).mkdir(parents=True)
            for i in range(count):
                path = tmp_path / "photos" / folder / f"{i}.jpg"
                path.write_bytes(encode_image(create_scene(32 + i, 40 + number)))
        return tmp_path / "photos"

    return write


def load_counts(path):
    return {split: photos for split, (photos, _) in count_splits(Manifest.load(str(path))).items()}


def test_classes_alone_are_split_and_it_is_said(write_photos, tmp_path):
    path, notes = prepare_folder(write_photos("mugs", "plates"), tmp_path / "data")
    counts = load_counts(path)
    assert sum(counts.values()) == 80
    assert min(counts.values()) > 0
    assert "no val split: photos of all classes were shared out" in "\n".join(notes)
    assert "80 photos" in notes[-1]


def test_splits_that_are_there_are_kept_and_few_photos_stay_in_train(write_photos, tmp_path):
    splits = write_photos("train/mugs", "val/mugs", "test/mugs")
    counts = load_counts(prepare_folder(splits, tmp_path / "data")[0])
    assert counts == {"train": 40, "val": 40, "calibrate": 0, "test": 40}


def test_val_is_taken_from_train_where_only_it_is_missing(write_photos, tmp_path):
    counts = load_counts(prepare_folder(write_photos("train/mugs", "test/mugs"), tmp_path / "data")[0])
    assert counts["test"] == 40
    assert min(counts["val"], counts["calibrate"]) > 0


def test_a_second_call_changes_nothing(write_photos, tmp_path):
    photos = write_photos("mugs", "plates")
    path, _ = prepare_folder(photos, tmp_path / "data")
    before = path.read_bytes()
    (photos / "mugs" / "new.jpg").write_bytes((photos / "mugs" / "0.jpg").read_bytes())
    assert prepare_folder(photos, tmp_path / "data")[1] == [f"{path} is there from before and is used as it is"]
    assert path.read_bytes() == before


KILLED_BETWEEN_FILES = """
import os, signal, sys
from pathlib import Path
from training.data.prepared_folder import prepare_folder
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy

saved = []

def kill_at_the_second(save):
    def run(*arguments):
        if saved:
            os.kill(os.getpid(), signal.SIGKILL)
        save(*arguments)
        saved.append(save)
    return run

Manifest.save, Taxonomy.save = kill_at_the_second(Manifest.save), kill_at_the_second(Taxonomy.save)
prepare_folder(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_kill_between_the_two_files_is_healed_by_a_repeat(write_photos, tmp_path):
    photos, output = write_photos("mugs", "plates"), tmp_path / "data"
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_FILES, str(photos), str(output)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(output.iterdir())) == 1
    path, _ = prepare_folder(photos, output)
    assert sum(load_counts(path).values()) == 80
    assert set(Taxonomy.load(output / "taxonomy.json").leaf_ids) == {"mugs", "plates"}
