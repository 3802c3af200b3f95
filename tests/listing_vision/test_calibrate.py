"""`calibrate` by its command line, and what the gateway makes of a certificate for another backend."""

import asyncio
import re

import grpc
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from listing_vision.cli import app
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.config import ServeOptions
from serving.gateway.server import GatewayServer
from serving.triton.process import LocalTriton
from tests.support.bundles import copy_certified_for
from training.data.shards import write_shards
from training.inference.evaluated_model import load_evaluated_model
from vision.bundle import load_bundle
from vision.manifest import Manifest
from vision.taxonomy import Taxonomy


def calibrate(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_a_bundle_is_certified_by_the_triton_that_serves_it(bundle, synthetic_dataset, tmp_path, triton_installation):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    # The test listings serve for calibration here; nothing is judged.
    table = rows.table.to_pylist()
    for row in table:
        row["split"] = {"test": "calibrate"}.get(row["split"], row["split"])
    manifest = str(tmp_path / "manifest.parquet")
    Manifest.from_rows(table, rows.base_url).rebase(str(tmp_path)).save(manifest)
    triton = LocalTriton(bundle, triton_installation)
    triton.start()
    try:
        triton.wait_until_listening()
        by_triton = calibrate(
            bundle.folder,
            manifest,
            "--output",
            tmp_path / "by-triton",
            "--triton",
            triton.address,
            "--alpha-brand",
            0.1,
        )
    finally:
        triton.stop()
    assert by_triton.exit_code == 0, by_triton.output
    assert "calibrated on calibrate; thresholds to test from val" in by_triton.output
    here = calibrate(bundle.folder, manifest, "--output", tmp_path / "here", "--alpha-brand", 0.1)
    assert here.exit_code == 0, here.output
    # The same backend gives the same certificate wherever it runs.
    certificates = [load_bundle(tmp_path / name).calibration for name in ("by-triton", "here")]
    assert certificates[0].certifies == certificates[1].certifies
    assert [f.num_listings for f in certificates[0].fields] == [f.num_listings for f in certificates[1].fields]
    assert certificates[0].field("brand").alpha == 0.1
    again = calibrate(bundle.folder, manifest, "--output", tmp_path / "here")
    assert "never overwritten" in str(again.exception)


def test_each_engine_is_certified_under_its_own_name_and_fills_alone(pt2_bundle, bundle, synthetic_dataset, tmp_path):
    manifest, engines = synthetic_dataset / "manifest.parquet", ("onnxruntime", "aot-inductor")
    certificates = {}
    for engine in engines:
        # A small network is wrong so often that no usual guarantee can be certified.
        loose = ("--alpha-category", 0.9, "--alpha-brand", 0.9, "--delta", 0.5)
        done = calibrate(pt2_bundle.folder, manifest, *loose, "--engine", engine, "--output", tmp_path / engine)
        assert done.exit_code == 0, (done.output, done.exception)
        certificates[engine] = load_bundle(tmp_path / engine).calibration
    by_onnx, compiled = certificates.values()
    assert by_onnx.certifies["backend"] == "onnxruntime-cpu"
    assert compiled.certifies == {**by_onnx.certifies, "backend": "aot-inductor-cpu"}
    assert compiled.category_temperature == pytest.approx(by_onnx.category_temperature, rel=0.01)
    for one, other in zip(by_onnx.fields, compiled.fields, strict=True):
        assert other.num_listings == one.num_listings
        assert other.threshold == pytest.approx(one.threshold, abs=1e-3)
        assert one.threshold is not None
    for evaluated in engines:
        for engine in engines:
            model = load_evaluated_model(tmp_path / engine, engine=evaluated)
            fills = {field.threshold is not None for field in model.calibration.fields}
            assert fills == {engine == evaluated}
    missing = calibrate(bundle.folder, manifest, "--engine", "aot-inductor", "--output", tmp_path / "no")
    assert "has no model.pt2; export the run again with --pt2" in str(missing.exception)
    unknown = calibrate(bundle.folder, manifest, "--engine", "tvm", "--output", tmp_path / "no")
    assert "engine 'tvm' is not one of onnxruntime, aot-inductor" in str(unknown.exception)
    both = calibrate(
        bundle.folder, manifest, "--engine", "aot-inductor", "--triton", "localhost:1", "--output", tmp_path / "no"
    )
    assert (both.exit_code, "leave --engine out" in both.output) == (2, True)


def test_brands_that_the_taxonomy_lacks_are_refused_unless_they_may_be_others(bundle, synthetic_dataset, tmp_path):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet"))
    table = rows.table.to_pylist()
    table[next(i for i, row in enumerate(table) if row["split"] == "val")]["brand"] = "Brand Nobody Knows"
    manifest = str(tmp_path / "manifest.parquet")
    Manifest.from_rows(table, rows.base_url).rebase(str(tmp_path)).save(manifest)
    refused = calibrate(bundle.folder, manifest, "--output", tmp_path / "new")
    assert "unknown brand 'Brand Nobody Knows'" in str(refused.exception)
    taken = calibrate(bundle.folder, manifest, "--output", tmp_path / "new", "--other-brands")
    assert taken.exit_code == 0, taken.output


def test_thresholds_may_come_from_unlabelled_listings(bundle, synthetic_dataset, tmp_path):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).rebase(str(tmp_path))
    table = [row for row in rows.table.to_pylist() if row["split"] in ("val", "test")]
    labelled = [{**row, "split": "calibrate"} for row in table if row["split"] == "test"]
    # Labels that no taxonomy knows, which are not read.
    production = [{**row, "category": "sold last week", "split": ""} for row in table if row["split"] == "val"]
    for name, part in (("labelled", labelled), ("production", production)):
        Manifest.from_rows(part, str(tmp_path)).save(str(tmp_path / f"{name}.csv"))
    scores = ("--scores", tmp_path / "production.csv")
    done = calibrate(bundle.folder, tmp_path / "labelled.csv", *scores, "--output", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "calibrated on calibrate; thresholds to test from unlabelled listings; temperatures as" in done.output
    path = load_bundle(tmp_path / "new").calibration.field("category_path")
    assert path.num_listings == len({row["listing_id"] for row in labelled})
    refused = calibrate(bundle.folder, synthetic_dataset / "manifest.parquet", *scores, "--output", tmp_path / "no")
    assert "no row of the manifest has split 'calibrate'" in str(refused.exception)
    both = calibrate(
        bundle.folder, tmp_path / "labelled.csv", *scores, "--tune-split", "val", "--output", tmp_path / "no"
    )
    assert both.exit_code == 2


def test_unlabelled_photos_of_other_things_sharpen_the_scope_threshold(bundle, synthetic_dataset, tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
    manifest = synthetic_dataset / "manifest.parquet"
    done = calibrate(bundle.folder, manifest, "--output", tmp_path / "new", "--outside", folder)
    assert done.exit_code == 0, done.output
    calibration = load_bundle(tmp_path / "new").calibration
    assert f"scope: {calibration.certifies['outside']}" in done.output
    assert "of 3 photos of other things" in done.output
    assert calibration.scope_threshold >= bundle.calibration.scope_threshold
    (tmp_path / "empty").mkdir()
    refused = calibrate(bundle.folder, manifest, "--output", tmp_path / "no", "--outside", tmp_path / "empty")
    assert "has no file" in str(refused.exception)


def test_only_renditions_are_certified_as_such(bundle, synthetic_dataset, tmp_path):
    manifest, taxonomy = synthetic_dataset / "manifest.parquet", Taxonomy.load(synthetic_dataset / "taxonomy.json")
    write_shards(Manifest.load(str(manifest)), taxonomy, str(tmp_path / "small"), max_px=80)
    small = tmp_path / "small" / "manifest.parquet"
    done = calibrate(bundle.folder, small, "--output", tmp_path / "new", "--rendition", 80)
    assert done.exit_code == 0, done.output
    assert load_bundle(tmp_path / "new").calibration.certifies["backend"] == "onnxruntime-cpu@80px"
    originals = calibrate(bundle.folder, manifest, "--output", tmp_path / "no", "--rendition", 80)
    assert originals.exit_code == 1
    assert re.search(r"no photo .*\n.*jpg: \d+x\d+ is no rendition of 80 px", str(originals.exception))
    refused = calibrate(
        bundle.folder, manifest, "--output", tmp_path / "no", "--rendition", 80, "--triton", "localhost:1"
    )
    assert (refused.exit_code, "--decode-in gateway" in refused.output) == (2, True)


def test_a_certificate_ends_when_another_backend_takes_over(bundle, tmp_path, monkeypatch):
    folder = copy_certified_for(bundle, tmp_path / "copy", "onnxruntime-cpu")
    backend = "onnxruntime-cpu"

    async def answers_by(self):
        return backend

    monkeypatch.setattr("serving.inference.in_process.InProcessEngine.fetch_backend", answers_by)

    async def fills_while_backends_change():
        nonlocal backend
        server = GatewayServer(ServeOptions(bundle=folder, port=0, in_process=True, drain_s=0, health_interval_s=0.02))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = pb_grpc.ListingVisionServiceStub(channel)

                async def until_fills(wanted):
                    while True:
                        promises = (await stub.GetModel(pb.GetModelRequest())).guarantees
                        if all(promise.HasField("threshold") == wanted for promise in promises):
                            return
                        await asyncio.sleep(0.02)

                changes = (("onnxruntime-cpu", True), ("libtorch-cuda", False), ("onnxruntime-cpu", True))
                for name, wanted in changes:
                    backend = name
                    await asyncio.wait_for(until_fills(wanted), 30)
        finally:
            await server.stop()

    asyncio.run(fills_while_backends_change())


def test_a_gateway_fills_nothing_on_a_backend_that_was_not_certified(bundle, tmp_path):
    folder = copy_certified_for(bundle, tmp_path / "other", "onnxruntime-tensorrt")

    async def promises():
        server = GatewayServer(ServeOptions(bundle=folder, port=0, in_process=True, drain_s=0))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                return (await pb_grpc.ListingVisionServiceStub(channel).GetModel(pb.GetModelRequest())).guarantees
        finally:
            await server.stop()

    for promise in asyncio.run(promises()):
        assert not promise.HasField("threshold")
        assert "made with backend onnxruntime-tensorrt, served by onnxruntime-cpu" in promise.not_prefilled.message


def test_a_part_of_delta_is_kept_for_outcomes_and_written_down(bundle, synthetic_dataset, tmp_path):
    manifest = synthetic_dataset / "manifest.parquet"
    done = calibrate(bundle.folder, manifest, "--output", tmp_path / "new", "--outcomes-delta", 0.02)
    assert done.exit_code == 0, done.output
    assert "outcomes of hidden listings may certify looser thresholds, at 0.01 of delta" in done.output
    kept, before = (load_bundle(folder) for folder in (tmp_path / "new", bundle.folder))
    assert [field.outcomes.delta for field in kept.calibration.fields] == [0.01, 0.01]
    assert sum(field.delta for field in kept.calibration.fields) == pytest.approx(0.03)
    assert kept.calibration.total_delta == 0.05
    assert kept.rule_version != before.rule_version == ""
    neither = calibrate(bundle.folder, "--output", tmp_path / "no")
    assert neither.exit_code == 2
    assert "--from-outcomes" in neither.output
