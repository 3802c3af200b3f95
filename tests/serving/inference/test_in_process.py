import asyncio

import numpy as np
import pytest

from serving.inference.in_process import InProcessEngine
from vision.engine import OnnxEngine
from vision.errors import EngineBroken


def test_it_computes_what_onnx_runtime_computes(bundle):
    photos = bundle.golden.photos_nhwc

    async def infer():
        engine = InProcessEngine(bundle)
        try:
            assert engine.infer_encoded is None
            assert await engine.fetch_backend() == "onnxruntime-cpu"
            return await asyncio.gather(*(engine.infer(photos[:n]) for n in (1, 2)))
        finally:
            await engine.close()

    reference = OnnxEngine(bundle)
    for n, logits in zip((1, 2), asyncio.run(infer()), strict=True):
        for got, expected in zip(logits, reference.infer(photos[:n]), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_error_of_onnx_runtime_is_a_broken_engine(bundle):
    async def infer():
        engine = InProcessEngine(bundle)
        try:
            await engine.infer(bundle.golden.photos_nhwc[:, :32])
        finally:
            await engine.close()

    with pytest.raises(EngineBroken, match="ONNX Runtime: "):
        asyncio.run(infer())
