"""Whole jobs with the real model in this process: complete, exact, restartable."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from listing_vision.classify import classify_with_bundle
from serving.backfill import inspection
from serving.backfill.job import LOCK_PATH, read_job
from serving.backfill.ledger import Ledger
from serving.backfill.local_engine import create_local_engine
from serving.backfill.run import BackfillRequest, GracefulShutdown, Interrupted, open_or_create_job, retry, run
from serving.errors import BackfillError
from serving.protocol import listing_vision_pb2 as pb
from serving.storage import Store
from tests.conftest import ROOT
from tests.serving.backfill.conftest import read_manifest, write_manifest
from vision.errors import ManifestError


def request_for(market: Path, output: Path, **changed) -> BackfillRequest:
    defaults = {"listings_per_shard": 10, "top_k": 0, "embedding": False, "overwrite": False}
    return BackfillRequest(manifest=str(market / "manifest.csv"), output=str(output), **{**defaults, **changed})


def run_backfill(bundle, market: Path, output: Path, *, max_error_share=1.0, isolate=False, shutdown=None, **changed):
    """The store of a job that was run to its end."""
    store, shutdown = Store(str(output)), shutdown or GracefulShutdown()
    engine = create_local_engine(bundle, stop=shutdown.abort, isolate=isolate)
    try:
        with store.lock(LOCK_PATH):
            job = open_or_create_job(store, request_for(market, output, **changed), engine, lambda _: None)
            run(store, job, engine, max_error_share=max_error_share, shutdown=shutdown)
    finally:
        engine.close()
    return store


def read_suggestions(store: Store) -> dict[str, dict]:
    rows = [
        row
        for entry in Ledger(store).entries()
        for row in pyarrow.parquet.read_table(store.full_path(entry.suggestions.path)).to_pylist()
    ]
    assert len({row["listing_id"] for row in rows}) == len(rows)
    return {row["listing_id"]: row for row in rows}


def read_dead_letters(store: Store) -> list[dict]:
    files = [entry.dead_letters.path for entry in Ledger(store).entries() if entry.dead_letters]
    return [row for path in files for row in pyarrow.parquet.read_table(store.full_path(path)).to_pylist()]


def photos_by_listing(market: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for row in read_manifest(market / "manifest.csv"):
        found.setdefault(row["listing_id"], []).append(market / row["photo"])
    return found


def test_every_listing_is_answered_as_the_service_answers_it(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out", isolate=True, top_k=3, embedding=True)
    answers, photos = read_suggestions(store), photos_by_listing(market)
    assert list(answers) == list(photos)
    for listing_id in list(photos)[::8]:
        row = answers[listing_id]
        alone = classify_with_bundle(bundle.folder, [path.read_bytes() for path in photos[listing_id]])
        assert [step["id"] for step in row["category_path"]] == [step.category_id for step in alone.category_path]
        for step, wanted in zip(row["category_path"], alone.category_path, strict=True):
            assert step["probability"] == pytest.approx(wanted.probability, abs=1e-5)
            assert step["filled"] == (wanted.outcome == pb.SUGGESTION_OUTCOME_FILL)
            assert step["name"] == wanted.name
        assert row["category_id"] == alone.category_path[-1].category_id
        assert row["brand"]["id"] == (alone.brand.brand_id or None)
        assert row["brand"]["filled"] == (alone.brand.outcome == pb.SUGGESTION_OUTCOME_FILL)
        assert [a["id"] for a in row["alternatives"]] == [a.category_id for a in alone.alternatives[:3]]
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
    # A folder of it is a table for whoever reads it.
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
def test_another_job_is_refused_unless_it_begins_anew(bundle, market, tmp_path, changed, said):
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
    engine = create_local_engine(bundle, stop=GracefulShutdown().abort, isolate=False)
    engine.versions = type(engine.versions)(**{**vars(engine.versions), "version": "another"})
    with pytest.raises(BackfillError, match="version another"):
        open_or_create_job(Store(str(tmp_path / "out")), request_for(market, tmp_path / "out"), engine, lambda _: None)
    engine.close()


def test_a_folder_of_something_else_is_left_alone(bundle, market, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("do not delete")
    for overwrite in (False, True):
        with pytest.raises(BackfillError, match=r"other files, such as precious\.txt"):
            run_backfill(bundle, market, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "precious.txt").read_text() == "do not delete"


def test_bad_photos_are_told_and_the_rest_answered(bundle, market, tmp_path):
    photos = photos_by_listing(market)
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


def test_dead_letters_alone_are_taken_up_again(bundle, market, tmp_path):
    photos = photos_by_listing(market)
    lost, broken = list(photos)[3], list(photos)[25]
    kept = photos[lost][0].read_bytes()
    photos[lost][0].unlink()
    photos[broken][0].write_bytes(b"no photo")
    store = run_backfill(bundle, market, tmp_path / "out")
    before = read_suggestions(store)
    photos[lost][0].write_bytes(kept)
    engine, shutdown = create_local_engine(bundle, stop=GracefulShutdown().abort, isolate=False), GracefulShutdown()
    options = {"max_error_share": 1.0, "stopper": shutdown}
    job = read_job(store)
    # Of the other reason nothing is mended, and what was lost stays among the dead letters.
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


def test_an_outage_while_retrying_costs_no_good_answer(bundle, market, tmp_path):
    photos = photos_by_listing(market)
    several = [listing for listing in photos if len(photos[listing]) > 1]
    photos[several[0]][0].write_bytes(b"no photo")
    store = run_backfill(bundle, market, tmp_path / "out")
    before = read_suggestions(store)
    for photo in photos[several[0]][1:]:
        photo.unlink()
    engine = create_local_engine(bundle, stop=GracefulShutdown().abort, isolate=False)
    found = retry(store, read_job(store), engine, reasons=[], max_error_share=1.0, shutdown=GracefulShutdown())
    engine.close()
    assert found["photos_recovered"] == 0
    assert read_suggestions(store) == before
    assert inspection.verify(store).is_valid


def test_a_manifest_that_cannot_be_used_drops_nothing(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    before = list(Ledger(store).entries())
    (market / "manifest.csv").write_text("listing,photo\n1,2\n")
    with pytest.raises(ManifestError, match="column 'listing_id' is missing"):
        run_backfill(bundle, market, tmp_path / "out", overwrite=True)
    assert list(Ledger(store).entries()) == before
    assert read_job(store)


def test_an_answer_that_is_gone_is_given_again(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    store.remove(next(Ledger(store).entries()).suggestions.path)
    run_backfill(bundle, market, tmp_path / "out")
    assert inspection.verify(store).is_valid


def test_files_of_several_folders_are_refused(bundle, market, tmp_path):
    for name in ("1", "2"):
        (market / name).mkdir()
        (market / name / "m.csv").write_text("listing_id,photo\na,1.jpg\n")
    store, engine = (
        Store(str(tmp_path / "out")),
        create_local_engine(bundle, stop=GracefulShutdown().abort, isolate=False),
    )
    request = replace(request_for(market, tmp_path / "out"), manifest=str(market / "*" / "m.csv"))
    with pytest.raises(BackfillError, match="lie in 2 folders"):
        open_or_create_job(store, request, engine, lambda _: None)
    engine.close()


def test_too_many_errors_stop_it_and_it_goes_on_once_they_are_mended(bundle, market, tmp_path):
    photos = photos_by_listing(market)
    away = [path for listing in list(photos)[-20:] for path in photos[listing]]
    kept = {path: path.read_bytes() for path in away}
    for path in away:
        path.unlink()
    with pytest.raises(BackfillError, match=r"cannot be used .* PHOTO_NOT_FOUND(.|\n)*start the same command again"):
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


def test_it_stops_when_asked_and_goes_on(bundle, market, tmp_path, monkeypatch):
    shutdown = GracefulShutdown(grace_period_s=60, exit_deadline_s=120)
    monkeypatch.setattr(
        "serving.backfill.run.commit_shard",
        lambda *arguments, real=sys.modules["serving.backfill.run"].commit_shard: (
            shutdown.stop_requested.set(),
            real(*arguments),
        )[1],
    )
    with pytest.raises(Interrupted, match="goes on from here"):
        run_backfill(bundle, market, tmp_path / "out", shutdown=shutdown)
    store = Store(str(tmp_path / "out"))
    done = len(list(Ledger(store).entries()))
    assert 0 < done < read_job(store).num_shards
    assert not store.exists("_SUCCESS.json")
    assert "not running" in str(inspection.status(store))
    run_backfill(bundle, market, tmp_path / "out")
    assert inspection.verify(store).is_valid


def test_what_is_wrong_with_an_output_is_found(bundle, market, tmp_path):
    store = run_backfill(bundle, market, tmp_path / "out")
    entries = list(Ledger(store).entries())
    first = Path(store.full_path(entries[0].suggestions.path))
    second = Path(store.full_path(entries[1].suggestions.path))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    found = inspection.verify(store)
    assert not found.is_valid
    assert any("checksum differs" in problem for problem in found.problems)
    assert found.num_missing == 10
    first.unlink()
    assert any("is missing" in problem for problem in inspection.verify(store).problems)
    first.write_bytes(kept)
    assert inspection.verify(store).is_valid
    (first.parent / "shard-0000099.parquet").write_bytes(kept)
    assert any("in no ledger" in problem for problem in inspection.verify(store).problems)


def test_what_changed_between_two_backfills(bundle, market, tmp_path):
    old = run_backfill(bundle, market, tmp_path / "old")
    photos = photos_by_listing(market)
    ids = list(photos)
    answers = read_suggestions(old)
    # The photos of one listing now show another thing, and one listing is new to the other.
    other = next(i for i in ids[1:] if answers[i]["category_id"] != answers[ids[0]]["category_id"])
    for photo in photos[ids[0]]:
        photo.write_bytes(photos[other][0].read_bytes())
    rows = read_manifest(market / "manifest.csv")
    write_manifest(market / "manifest.csv", [row for row in rows if row["listing_id"] != ids[-1]])
    new = run_backfill(bundle, market, tmp_path / "new")
    found = inspection.diff(old, new)
    assert (found.num_in_both, found.num_only_old, found.num_only_new) == (len(ids) - 1, 1, 0)
    assert found.num_category_changed == 1
    assert found.pairs == [(answers[ids[0]]["category_id"], read_suggestions(new)[ids[0]]["category_id"], 1)]
    assert found.examples[0][0] == ids[0]
    assert "another category" in str(found)
    assert answers[ids[1]]["category_path"][0]["name"] in inspection.describe_distribution(new)


def cli(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "listing_vision", "backfill", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for_exit(process: subprocess.Popen) -> tuple[int, str]:
    said, _ = process.communicate(timeout=200)
    return process.returncode, said


def test_the_command_line_killed_and_stopped_ends_complete(bundle, market, tmp_path):
    # Each listing many times, so that there is something to interrupt.
    rows = read_manifest(market / "manifest.csv")
    many = [{**row, "listing_id": f"{row['listing_id']}-{copy}"} for copy in range(25) for row in rows]
    write_manifest(market / "manifest.csv", many)
    output = tmp_path / "out"
    command = ("run", market / "manifest.csv", "--model", bundle.folder, "--output", output, "--listings-per-shard", 20)
    store = Store(str(output))

    def wait_for_shards(process, num_shards: int) -> None:
        while process.poll() is None and len(store.list_files("_job/ledger")) < num_shards:
            time.sleep(0.02)

    done = 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = cli(*command, start_new_session=True)
        wait_for_shards(process, done + 3)
        os.kill(process.pid, number)
        code, said = wait_for_exit(process)
        assert code == (75 if number == signal.SIGTERM else -9), said
        done = len(store.list_files("_job/ledger"))
        assert not store.exists("_SUCCESS.json")
    code, said = wait_for_exit(cli(*command))
    assert code == 0, said
    assert "going on:" in said
    assert "photos/s" in said
    assert "top category" in said
    code, said = wait_for_exit(cli("verify", output))
    assert (code, said.splitlines()[-1]) == (0, "right")
    assert len(read_suggestions(store)) == len({row["listing_id"] for row in many})
    code, said = wait_for_exit(cli("status", output))
    assert (code, "done" in said.splitlines()[0]) == (0, True)
    code, said = wait_for_exit(cli("diff", output, output))
    assert code == 0, said
    Path(store.full_path(next(Ledger(store).entries()).suggestions.path)).unlink()
    assert wait_for_exit(cli("verify", output))[0] == 1


def test_wrong_usage_is_told(bundle, market, tmp_path):
    command = ("run", market / "manifest.csv", "--model", bundle.folder, "--output", tmp_path / "out")
    assert wait_for_exit(cli(*command, "--rate", 5))[0] == 2
    assert wait_for_exit(cli(*command, "--ray", "--target", "localhost:1"))[0] == 2
    code, said = wait_for_exit(cli("status", tmp_path / "nothing"))
    assert (code, "holds no backfill" in said) == (1, True)
    code, said = wait_for_exit(cli(*command, "--target", "127.0.0.1:1"))
    assert (code, "--target 127.0.0.1:1" in said) == (1, True)
