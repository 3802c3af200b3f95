import logging

import numpy as np
import onnx
import pytest

from training.export.quantization import METHODS, export_quantized_onnx
from vision.engine import INPUT_NAME


@pytest.mark.parametrize("method", METHODS)
def test_every_method_quantizes_the_weights_of_convolutions_in_silence(bundle, tmp_path, method, caplog, capfd):
    photos = np.random.default_rng(0).integers(0, 256, (3, *bundle.golden.photos_nhwc.shape[1:]), np.uint8)
    with caplog.at_level(logging.INFO):
        export_quantized_onnx(bundle.onnx_path, photos, tmp_path / "int8.onnx", method=method)
        logging.getLogger(__name__).info("heard")
    assert caplog.messages == ["heard"]
    assert capfd.readouterr().out == ""
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    assert [value.name for value in graph.input] == [INPUT_NAME]
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(node.input[1] in dequantized for node in convolutions)
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert weights
    # Seven bits: pairs of products must not overflow on processors without VNNI.
    assert max(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in weights) <= 64
