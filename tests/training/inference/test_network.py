import dataclasses

import numpy as np
import pytest

from training.inference.forward import onnx_forward, torch_forward
from training.inference.network import load_bundle_model
from vision.errors import BundleError


def test_the_network_built_again_answers_like_the_export(bundle):
    photos = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    wanted, got = onnx_forward(bundle.onnx_path)(photos), torch_forward(load_bundle_model(bundle))(photos)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_weights_of_another_network_are_refused(bundle):
    info = dataclasses.replace(bundle.info, backbone="test_resnet")
    with pytest.raises(BundleError, match="its weights do not fit the network built from its manifest"):
        load_bundle_model(dataclasses.replace(bundle, info=info))
