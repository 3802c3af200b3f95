import dataclasses

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from listing_vision.cli import app
from serving.triton.config import RepositoryOptions
from serving.triton.repository import write_repository
from training.errors import PrecisionRefused
from training.export.precision import Fp16Classifier, convert_bundle, measure_onnx_speeds
from training.inference.network import load_bundle_model
from vision.bundle import load_bundle
from vision.engine import OnnxEngine, check_golden
from vision.errors import BundleError, ListingVisionError
from vision.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(synthetic_dataset):
    return Manifest.load(str(synthetic_dataset / "manifest.parquet"))


@pytest.fixture(scope="module")
def int8(bundle, manifest, tmp_path_factory):
    """Conversion of a bundle whose manifest also tells of a model.pt2."""
    parity = {**bundle.info.parity, "aot_inductor": bundle.info.parity["onnx"]}
    return convert_bundle(
        dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, parity=parity)),
        manifest,
        tmp_path_factory.mktemp("int8") / "bundle",
        precision="int8",
        max_top1_loss=1.0,
        measure_s=0.05,
    )


@pytest.fixture(scope="module")
def convert_verb(bundle, synthetic_dataset, tmp_path_factory):
    """The result of the verb `convert` to fp16, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("fp16") / "bundle"
    words = ["convert", bundle.folder, synthetic_dataset / "manifest.parquet"]
    words += ["--precision", "fp16", "--output", folder, "--max-top1-loss", "1"]
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False), folder


@pytest.fixture(scope="module")
def fp16(convert_verb):
    return load_bundle(convert_verb[1])


def count_weight_bytes(path):
    """Bytes of the weights alone: a small network's nodes are as many bytes again."""
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(str(path)).graph.initializer)


def operations(path):
    return {node.op_type for node in onnx.load(str(path)).graph.node}


def test_int8_holds_quantized_weights_and_answers_nearly_alike(bundle, int8):
    assert {"QuantizeLinear", "DequantizeLinear"} <= operations(int8.onnx_path)
    assert count_weight_bytes(int8.onnx_path) < 0.5 * count_weight_bytes(bundle.onnx_path)
    photos = bundle.golden.photos_nhwc
    difference = OnnxEngine(int8).infer(photos).category - bundle.golden.category_logits
    assert 0 < np.abs(difference).max() < 0.5 * np.abs(bundle.golden.category_logits).max()


def test_fp16_has_its_backbone_in_half_precision_in_both_exports(bundle, fp16):
    kinds = {t.data_type for t in onnx.load(str(fp16.onnx_path)).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert count_weight_bytes(fp16.onnx_path) < 0.7 * count_weight_bytes(bundle.onnx_path)
    assert fp16.torchscript_path.stat().st_size < 0.7 * bundle.torchscript_path.stat().st_size
    network = Fp16Classifier(load_bundle_model(bundle)).eval()
    with torch.inference_mode():
        wanted = network(torch.from_numpy(bundle.golden.photos_nhwc)).category_logits.numpy()
    np.testing.assert_allclose(OnnxEngine(fp16).infer(bundle.golden.photos_nhwc).category, wanted, atol=0.1)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_it_is_a_bundle_of_its_own_with_promises_of_its_own(bundle, request, precision):
    converted = load_bundle(request.getfixturevalue(precision).folder)
    assert converted.info.precision == precision
    assert converted.info.model_version == f"{bundle.info.model_version}-{precision}"
    assert converted.calibration.certifies["precision"] == precision
    assert converted.calibration.certifies["model"] == converted.sha256["model.onnx"]
    check_golden(converted, OnnxEngine(converted).infer(converted.golden.photos_nhwc))
    card = (converted.folder / "model_card.md").read_text()
    assert "points of top-1 against fp32" in card
    assert "photos/s of the model alone" in card
    assert "aot_inductor" not in converted.info.parity
    assert sorted(path.name for path in converted.folder.iterdir()) == sorted(
        path.name for path in bundle.folder.iterdir()
    )


def test_what_loses_too_much_is_refused_and_nothing_is_written(bundle, manifest, tmp_path):
    with pytest.raises(PrecisionRefused, match=r"points fewer of the tune split's leaves correctly .*keep fp32"):
        # Not even a gain passes.
        convert_bundle(bundle, manifest, tmp_path / "bundle", precision="fp16", max_top1_loss=-2.0)
    assert not (tmp_path / "bundle").exists()


def test_wrong_requests_are_refused_before_the_work(bundle, int8, manifest, tmp_path):
    with pytest.raises(ListingVisionError, match="precision 'int4' is not one of fp16, int8"):
        convert_bundle(bundle, manifest, tmp_path / "bundle", precision="int4")
    with pytest.raises(BundleError, match="is in int8; convert the fp32 one it came from"):
        convert_bundle(int8, manifest, tmp_path / "bundle", precision="fp16")
    with pytest.raises(BundleError, match="exists"):
        convert_bundle(bundle, manifest, bundle.folder, precision="int8")


def test_int8_is_not_given_to_backends_that_run_torchscript(int8, tmp_path):
    for backend in ("pytorch", "python-gpu"):
        with pytest.raises(BundleError, match=f"for ONNX Runtime; --backend {backend} runs TorchScript"):
            write_repository(int8, tmp_path / backend, RepositoryOptions(backend=backend))
    assert (write_repository(int8, tmp_path / "python", RepositoryOptions(backend="python")) / "1").is_dir()


def test_speeds_are_of_each_model(bundle, int8):
    found = measure_onnx_speeds(
        {"fp32": bundle.onnx_path, "int8": int8.onnx_path}, bundle.golden.photos_nhwc, rounds=1, seconds=0.05
    )
    assert set(found) == {"fp32", "int8"}
    assert min(found.values()) > 0


def test_the_verb_prints_the_conversion_and_the_version(bundle, convert_verb):
    done, _ = convert_verb
    assert done.exit_code == 0
    assert "fp16 by backbone in fp16" in done.stdout
    assert f"{bundle.info.model_version}-fp16" in done.stdout
