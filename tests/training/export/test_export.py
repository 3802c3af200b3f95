import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from training.errors import ExportMismatch
from training.export import export
from training.export.export import BATCH_SIZES, compare_export, compute_log_priors, export_bundle
from training.export.torchscript import load_torchscript
from training.inference.forward import onnx_forward, torch_forward
from training.run import Run
from vision.errors import BundleError
from vision.manifest import Manifest
from vision.model import ScopeHead
from vision.photo_files import read_photo
from vision.taxonomy import Taxonomy


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), 64, 64, 3), np.uint8)


def test_both_exports_answer_like_the_trained_model_at_every_batch(bundle, trained_run, photos):
    model = trained_run.load_model()
    weights = load_file(bundle.folder / "weights.safetensors")
    model.scope_head = ScopeHead(weights["scope_head.mean"], weights["scope_head.whitening"])
    trained = torch_forward(model)
    for name, forward in (
        ("ONNX", onnx_forward(bundle.onnx_path)),
        ("TorchScript", torch_forward(load_torchscript(bundle.torchscript_path))),
    ):
        report = compare_export(trained, forward, photos, name=name)
        assert report["answers_agreeing"] == 1
        assert max(report["max_abs_difference"].values()) < 1e-3


def test_an_export_tells_nothing_of_the_machine_that_made_it(bundle):
    for path in (bundle.onnx_path, bundle.torchscript_path):
        assert str(Path(export.__file__).parents[2]).encode() not in path.read_bytes()


def test_the_comparison_is_stored_in_the_bundle(bundle):
    assert bundle.info.parity["batch_sizes"] == [1, 2, 7, 64]
    assert bundle.info.parity["onnx"]["answers_agreeing"] == 1
    num_photos = int(bundle.info.parity["photos"].removesuffix(" photos of the val split"))
    assert 30 < num_photos <= 64


def test_the_bundle_knows_what_its_listings_were_like(bundle, synthetic_dataset):
    from training.statistics.drift import DRIFT_STATISTICS

    expected = bundle.calibration.expected
    assert set(expected) == set(DRIFT_STATISTICS)
    val = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("val")
    sizes = [len(read_photo(val.get_photo_url(row))) for row in range(len(val))]
    assert min(sizes) <= expected["bytes_per_photo"].edges[0] <= max(sizes)
    for spread in expected.values():
        assert sum(spread.shares) == pytest.approx(1)
        assert spread.num_values == len(np.unique(val.number_listings()))
    assert all(0 < edge <= 1 for edge in expected["leaf_probability"].edges)


def test_a_difference_is_refused(bundle, trained_run, photos):
    trained = torch_forward(trained_run.load_model())

    def shifted(batch):
        answer = trained(batch)
        return answer._replace(brand=answer.brand + 0.01)

    with pytest.raises(ExportMismatch, match=r"brand_logits by 0\.01, more than 0\.001"):
        compare_export(trained, shifted, photos, name="X")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(trained_run, photos, bad):
    trained = torch_forward(trained_run.load_model())

    def poisoned(batch):
        answer = trained(batch)
        return answer._replace(embedding=np.full_like(answer.embedding, bad))

    with pytest.raises(ExportMismatch, match="embedding holds NaN or infinity at batch 1"):
        compare_export(trained, poisoned, photos, name="X")


def test_one_row_for_seven_is_refused(trained_run, photos):
    trained = torch_forward(trained_run.load_model())
    same = np.repeat(photos[:1], len(photos), axis=0)
    with pytest.raises(ExportMismatch, match=r"category_logits with shape \(1, 10\), not \(2, 10\)"):
        compare_export(trained, lambda batch: trained(batch[:1]), same, name="X")


def test_an_export_with_a_frozen_batch_is_refused(trained_run, photos):
    trained = torch_forward(trained_run.load_model())

    def frozen(batch):
        if len(batch) != 1:
            raise RuntimeError("Got invalid dimensions")
        return trained(batch)

    with pytest.raises(ExportMismatch, match="does not run at batch 2: Got invalid dimensions"):
        compare_export(trained, frozen, photos, name="X")


def test_a_bundle_is_never_overwritten(bundle, trained_run):
    with pytest.raises(BundleError, match="bundles are never overwritten"):
        export_bundle(trained_run, bundle.folder, model_name="x")


def test_answers_have_the_natural_frequencies_in_however_the_model_was_trained(synthetic_dataset, small_recipe):
    rows = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("train").table.to_pylist()
    taxonomy = Taxonomy.load(synthetic_dataset / "taxonomy.json")
    first = rows[0]["category"]
    # The first row's category is made common.
    train = Manifest.from_rows(rows + [row for row in rows if row["category"] == first] * 5, "")
    assert compute_log_priors(small_recipe, train, taxonomy) == ([], [])

    def changed(**how):
        recipe = dataclasses.replace(small_recipe, **how)
        category, brand = compute_log_priors(recipe, train, taxonomy)
        assert len(category) == len(taxonomy.leaf_ids)
        assert len(brand) == len(taxonomy.brand_labels)
        return np.array(category)

    adjusted = changed(long_tail="logit_adjustment")
    assert np.exp(adjusted).sum() == pytest.approx(1)
    assert taxonomy.leaf_ids[int(adjusted.argmax())] == taxonomy.find_category(first)
    # The adjusted loss takes out whatever frequencies were drawn; what comes back are the natural ones.
    np.testing.assert_array_equal(changed(long_tail="logit_adjustment", balanced_sampling=1.0), adjusted)
    # Drawn alike often, each class has lost its own frequency: what comes back is that, up to a constant.
    balanced = changed(balanced_sampling=1.0)
    np.testing.assert_allclose(balanced - balanced.mean(), adjusted - adjusted.mean(), atol=0.05)


def test_a_manifest_that_changed_since_training_is_said(trained_run, tmp_path, monkeypatch, caplog):
    changed = shutil.copytree(trained_run.folder, tmp_path / "run")
    rows = Manifest.load(trained_run.read_settings()["manifest"])
    elsewhere = str(tmp_path / "manifest.parquet")
    table = rows.rebase(str(tmp_path)).table.to_pylist()
    Manifest.from_rows([*table, {**table[0], "listing_id": "one more"}], str(tmp_path)).save(elsewhere)
    settings = {**trained_run.read_settings(), "manifest": elsewhere}
    monkeypatch.setattr(Run, "read_settings", lambda self: settings)
    monkeypatch.setattr("training.export.export.build_bundle", lambda *args, **kwargs: None)
    export_bundle(Run(changed), tmp_path / "bundle", model_name="x")
    assert "the manifest has changed since training" in caplog.text
