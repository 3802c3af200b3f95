"""Whole jobs with the real model in this process: complete, exact, restartable."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from listing_vision.classify import classify_with_bundle
from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.backfill import inspection
from serving.backfill.job import read_job
from serving.backfill.ledger import Ledger
from serving.backfill.local_engine import EngineOptions, create_local_engine
from serving.backfill.run import open_or_create_job, retry
from serving.backfill.shutdown import GracefulShutdown, Interrupted
from serving.errors import BackfillError
from serving.storage import Store
from tests.support.backfill import (
    create_request,
    group_photos_by_listing,
    read_dead_letters,
    read_manifest,
    read_suggestions,
    run_backfill,
    shrink_photos,
    write_manifest,
)
from tests.support.bundles import copy_certified_for
from training.data.renditions import create_rendition
from vision.bundle import load_bundle
from vision.errors import ManifestError
from vision.images import read_size_px


def test_files_of_several_folders_are_one_manifest_if_their_photos_are_absolute(bundle, market, tmp_path):
    rows = [{**row, "photo": str(market / row["photo"])} for row in read_manifest(market / "manifest.csv")]
    (market / "manifest.csv").unlink()
    for number in range(2):
        (market / f"{number}").mkdir()
        write_manifest(market / f"{number}" / "rows.CSV", rows[number::2])
    request = replace(create_request(market), manifest=str(market / "[01]*" / "*.CSV"))
    engine = create_local_engine(bundle, EngineOptions(isolate=False))
    job = open_or_create_job(Store(str(tmp_path / "out")), request, engine, lambda _: None)
    assert (job.base_url, job.num_photos) == ("", len(rows))
    assert open_or_create_job(Store(str(tmp_path / "out")), request, engine, lambda _: None) == job
    write_manifest(market / "0" / "rows.CSV", [{**rows[0], "photo": "0.jpg"}])
    with pytest.raises(ManifestError, match=r"photo 0\.jpg is relative, and the files are in several folders"):
        open_or_create_job(Store(str(tmp_path / "new")), request, engine, lambda _: None)
    engine.close()


def test_every_listing_gets_the_suggestion_of_the_service(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out", isolate=True, top_k=3, embedding=True)
    answers, photos = read_suggestions(store), group_photos_by_listing(market)
    assert list(answers) == list(photos)
    for listing_id in list(photos)[::8]:
        row = answers[listing_id]
        alone = classify_with_bundle(bundle.folder, [path.read_bytes() for path in photos[listing_id]])
        assert [step["id"] for step in row["category_path"]] == [step.category_id for step in alone.category_path]
        for step, wanted in zip(row["category_path"], alone.category_path, strict=True):
            assert step["probability"] == pytest.approx(wanted.probability, abs=1e-5)
            assert step["filled"] == (wanted.action == pb.ACTION_PREFILL)
            assert step["name"] == wanted.name
        assert row["category_id"] == alone.category_path[-1].category_id
        assert row["brand"]["id"] == (alone.brand.brand_id or None)
        assert row["brand"]["filled"] == (alone.brand.action == pb.ACTION_PREFILL)
        assert [a["id"] for a in row["alternatives"]] == [a.category_id for a in alone.category_alternatives[:3]]
        assert len(row["embedding"]) == bundle.info.embedding_size
        assert row["num_photos"] == len(photos[listing_id])
        versions = (row["model_version"], row["taxonomy_version"], row["calibration_version"])
        assert versions == (alone.model.version, alone.model.taxonomy_version, alone.model.calibration_version)
    verified = inspection.verify(store)
    assert verified.is_valid
    assert (verified.num_listings, verified.num_suggestions) == (len(photos), len(photos))
    success = json.loads(store.read("_SUCCESS.json"))
    assert sum(file["num_rows"] for file in success["files"]) == len(photos)
    schema = pyarrow.parquet.read_schema(store.full_path(success["files"][0]["path"]))
    assert schema.metadata[b"listing_vision.schema_version"] == b"1"
    # The folder is one table for any reader of Parquet.
    assert pyarrow.parquet.read_table(store.full_path("suggestions")).num_rows == len(photos)


def test_the_same_command_does_nothing_twice(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    before = list(Ledger(store).entries())
    run_backfill(bundle, market, tmp_path / "out")
    assert list(Ledger(store).entries()) == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"top_k": 2}, "top_k: 0 then, 2 now"),
        ({"listings_per_shard": 7}, "listings_per_shard: 10 then, 7 now"),
        ({"embedding": True}, "embedding: False then, True now"),
    ],
)
def test_another_job_is_refused_without_overwrite(bundle, market, tmp_path, changed, said):
    store = run_backfill(bundle, market, tmp_path / "out")
    before = list(Ledger(store).entries())
    with pytest.raises(BackfillError, match=said):
        run_backfill(bundle, market, tmp_path / "out", **changed)
    assert list(Ledger(store).entries()) == before
    run_backfill(bundle, market, tmp_path / "out", overwrite=True, **changed)
    assert inspection.verify(store).is_valid
    assert getattr(read_job(store), next(iter(changed))) == next(iter(changed.values()))


def test_another_input_or_model_is_refused(bundle, market, tmp_path):
    run_backfill(bundle, market, tmp_path / "out")
    rows = read_manifest(market / "manifest.csv")
    write_manifest(market / "manifest.csv", rows[:-1])
    with pytest.raises(BackfillError, match="manifest_sha256"):
        run_backfill(bundle, market, tmp_path / "out")
    write_manifest(market / "manifest.csv", rows)
    engine = create_local_engine(bundle, EngineOptions(isolate=False))
    engine.versions = type(engine.versions)(**{**vars(engine.versions), "version": "another"})
    with pytest.raises(BackfillError, match="version another"):
        open_or_create_job(Store(str(tmp_path / "out")), create_request(market), engine, lambda _: None)
    engine.close()


def test_a_folder_of_something_else_is_left_alone(bundle, market, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("do not delete")
    for overwrite in (False, True):
        with pytest.raises(BackfillError, match=r"other files, such as precious\.txt"):
            run_backfill(bundle, market, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "precious.txt").read_text() == "do not delete"


def test_bad_photos_become_dead_letters_and_the_rest_is_classified(bundle, market, tmp_path):
    photos = group_photos_by_listing(market)
    one_bad, all_bad = list(photos)[:2]
    photos[one_bad][0].write_bytes(b"no photo")
    for photo in photos[all_bad]:
        photo.unlink()
    store = run_backfill(bundle, market, tmp_path / "out")
    answers = read_suggestions(store)
    assert len(photos[one_bad]) > 1
    assert answers[one_bad]["result"] == "classified"
    assert [error["reason"] for error in answers[one_bad]["photo_errors"]] == ["PHOTO_NOT_AN_IMAGE"]
    assert answers[all_bad]["result"] == "no_usable_photo"
    assert answers[all_bad]["category_path"] is None
    letters = read_dead_letters(store)
    assert [letter["listing_id"] for letter in letters] == [one_bad] + [all_bad] * len(photos[all_bad])
    assert {letter["reason"] for letter in letters[1:]} == {"PHOTO_NOT_FOUND"}
    found = inspection.status(store)
    assert found.totals.results == {"classified": len(photos) - 1, "no_usable_photo": 1}
    assert inspection.verify(store).is_valid


def test_a_retry_classifies_the_listings_of_dead_letters_alone(bundle, market, tmp_path):
    photos = group_photos_by_listing(market)
    lost, broken = list(photos)[3], list(photos)[25]
    kept = photos[lost][0].read_bytes()
    photos[lost][0].unlink()
    photos[broken][0].write_bytes(b"no photo")
    store = run_backfill(bundle, market, tmp_path / "out")
    before = read_suggestions(store)
    photos[lost][0].write_bytes(kept)
    engine, shutdown = create_local_engine(bundle, EngineOptions(isolate=False)), GracefulShutdown()
    options = {"max_error_share": 1.0, "shutdown": shutdown}
    job = read_job(store)
    # The photo of that reason is still broken, and the missing one stays among the dead letters.
    found = retry(store, job, engine, reasons=["PHOTO_NOT_AN_IMAGE"], **options)
    assert found == {"listings": 1, "photos_recovered": 0, "photos_unusable": 2}
    found = retry(store, job, engine, reasons=[], **options)
    engine.close()
    assert found == {"listings": 2, "photos_recovered": 1, "photos_unusable": 1}
    after = read_suggestions(store)
    assert list(after) == list(before)
    assert after[lost]["photo_errors"] == []
    alone = classify_with_bundle(bundle.folder, [path.read_bytes() for path in photos[lost]])
    assert after[lost]["category_path"][0]["probability"] == pytest.approx(alone.category_path[0].probability, abs=1e-5)
    assert {i: row for i, row in after.items() if i != lost} == {i: row for i, row in before.items() if i != lost}
    assert [letter["listing_id"] for letter in read_dead_letters(store)] == [broken]
    assert inspection.verify(store).is_valid


def test_an_outage_during_a_retry_loses_no_good_row(bundle, market, tmp_path):
    photos = group_photos_by_listing(market)
    several = [listing for listing in photos if len(photos[listing]) > 1]
    photos[several[0]][0].write_bytes(b"no photo")
    store = run_backfill(bundle, market, tmp_path / "out")
    before = read_suggestions(store)
    for photo in photos[several[0]][1:]:
        photo.unlink()
    engine = create_local_engine(bundle, EngineOptions(isolate=False))
    found = retry(store, read_job(store), engine, reasons=[], max_error_share=1.0, shutdown=GracefulShutdown())
    engine.close()
    assert found["photos_recovered"] == 0
    assert read_suggestions(store) == before
    assert inspection.verify(store).is_valid


def test_a_manifest_that_cannot_be_used_deletes_nothing(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    before = list(Ledger(store).entries())
    (market / "manifest.csv").write_text("listing,photo\n1,2\n")
    with pytest.raises(ManifestError, match="column 'listing_id' is missing"):
        run_backfill(bundle, market, tmp_path / "out", overwrite=True)
    assert list(Ledger(store).entries()) == before
    assert read_job(store)


def test_a_shard_whose_file_is_missing_is_classified_again(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    store.remove(next(Ledger(store).entries()).suggestions.path)
    run_backfill(bundle, market, tmp_path / "out")
    assert inspection.verify(store).is_valid


def test_too_many_errors_stop_the_job_and_it_resumes_once_they_are_fixed(bundle, market, tmp_path):
    photos = group_photos_by_listing(market)
    away = [path for listing in list(photos)[-20:] for path in photos[listing]]
    kept = {path: path.read_bytes() for path in away}
    for path in away:
        path.unlink()
    with pytest.raises(BackfillError, match=r"cannot be used .* PHOTO_NOT_FOUND(.|\n)*rerun the same command"):
        run_backfill(bundle, market, tmp_path / "out", max_error_share=0.02)
    store = Store(str(tmp_path / "out"))
    before = list(Ledger(store).entries())
    assert 0 < len(before) < read_job(store).num_shards
    for path, data in kept.items():
        path.write_bytes(data)
    run_backfill(bundle, market, tmp_path / "out", max_error_share=0.02)
    assert [entry for entry in Ledger(store).entries() if entry in before] == before
    assert read_dead_letters(store) == []
    assert inspection.verify(store).is_valid


def test_renditions_have_a_certificate_of_their_own(bundle, market, tmp_path):
    shrink_photos(market, max_px=80)

    def fill(name, certified_for, **options):
        folder = copy_certified_for(bundle, tmp_path / name, certified_for, threshold=0.01)
        return read_suggestions(run_backfill(load_bundle(folder), market, tmp_path / f"{name}-out", **options))

    def count_filled(suggestions):
        return sum(row["filled_category_id"] is not None for row in suggestions.values())

    originals = fill("originals", "onnxruntime-cpu")
    renditions = fill("renditions", "onnxruntime-cpu@80px", rendition_px=80)
    assert count_filled(renditions) == count_filled(originals) > 0
    assert count_filled(fill("void", "onnxruntime-cpu", rendition_px=80)) == 0
    assert count_filled(fill("reverse", "onnxruntime-cpu@80px")) == 0
    with pytest.raises(BackfillError, match="onnxruntime-cpu@80px"):
        run_backfill(load_bundle(tmp_path / "renditions"), market, tmp_path / "renditions-out")


@pytest.mark.parametrize("isolate", [False, True])
def test_a_photo_larger_than_the_renditions_cannot_be_used(bundle, market, tmp_path, isolate):
    (listing_id, photos), *_ = group_photos_by_listing(market).items()
    original = photos[0].read_bytes()
    shrink_photos(market, max_px=80)
    photos[0].write_bytes(original)
    store = run_backfill(bundle, market, tmp_path / "out", rendition_px=80, isolate=isolate)
    [letter] = read_dead_letters(store)
    width, height = read_size_px(original)
    assert (letter["listing_id"], letter["reason"]) == (listing_id, "PHOTO_TOO_MANY_PIXELS")
    assert f"{width}x{height} is no rendition of 80 px" in letter["message"]
    assert "leave --rendition out" in letter["message"]
    assert [error["photo"] for error in read_suggestions(store)[listing_id]["photo_errors"]] == [letter["photo"]]
    photos[0].write_bytes(create_rendition(original, max_px=80))
    job = read_job(store)
    engine = create_local_engine(bundle, EngineOptions(isolate=isolate, rendition_px=80))
    found = retry(store, job, engine, reasons=(), max_error_share=1.0, shutdown=GracefulShutdown())
    engine.close()
    assert (found["photos_recovered"], read_dead_letters(store)) == (1, [])


def test_killed_feeders_cost_nothing(bundle, market, tmp_path, monkeypatch):
    before = read_suggestions(run_backfill(bundle, market, tmp_path / "before"))
    real, killed = sys.modules["serving.backfill.run"].commit_shard, []

    def kill_and_commit(*arguments):
        children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
        for pid in children:
            if len(killed) < 2 and b"vision.feeders.feeder" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)
        return real(*arguments)

    monkeypatch.setattr("serving.backfill.run.commit_shard", kill_and_commit)
    store = run_backfill(bundle, market, tmp_path / "out", isolate=True)
    assert len(killed) == 2
    assert inspection.verify(store).is_valid
    assert read_suggestions(store) == before


def test_a_job_that_is_stopped_can_be_resumed(bundle, market, tmp_path, monkeypatch):
    shutdown = GracefulShutdown(grace_period_s=60, exit_deadline_s=120)
    monkeypatch.setattr(
        "serving.backfill.run.commit_shard",
        lambda *arguments, real=sys.modules["serving.backfill.run"].commit_shard: (
            shutdown.stop_requested.set(),
            real(*arguments),
        )[1],
    )
    with pytest.raises(Interrupted, match="to resume"):
        run_backfill(bundle, market, tmp_path / "out", shutdown=shutdown)
    store = Store(str(tmp_path / "out"))
    done = len(list(Ledger(store).entries()))
    assert 0 < done < read_job(store).num_shards
    assert not store.exists("_SUCCESS.json")
    assert "not running" in str(inspection.status(store))
    run_backfill(bundle, market, tmp_path / "out")
    assert inspection.verify(store).is_valid
