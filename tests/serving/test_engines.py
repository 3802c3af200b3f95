import asyncio

import numpy as np
import pytest

from serving.engines import InProcessEngine, TritonEngine, check
from serving.triton_server import LocalTriton
from vision.errors import EngineBroken, EngineUnavailable


def test_triton_and_this_process_answer_alike(bundle, triton_installation):
    photos = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)

    async def both():
        triton = LocalTriton(bundle, triton_installation)
        triton.start()
        try:
            await asyncio.to_thread(triton.wait_until_listening)
            engine = TritonEngine(triton.address)
            await check(engine, bundle)
            assert await engine.backend() == "onnxruntime-cpu"
            together = await asyncio.gather(*(engine.infer(photos[:n]) for n in (1, 2, 7)))
            with pytest.raises(EngineBroken, match="shape"):
                await engine.infer(photos[:, :32])
            await engine.close()
        finally:
            triton.stop()
        assert not triton.repository.exists()
        local = InProcessEngine(bundle)
        wanted = await local.infer(photos)
        assert await local.backend() == "onnxruntime-cpu"
        await local.close()
        return together, wanted

    together, wanted = asyncio.run(both())
    for answer in together:
        for got, reference in zip(answer, wanted, strict=True):
            np.testing.assert_allclose(got, reference[: len(got)], atol=1e-4)


def test_no_server_is_unavailable():
    async def call():
        engine = TritonEngine("127.0.0.1:1")
        try:
            await engine.infer(np.zeros((1, 64, 64, 3), np.uint8))
        finally:
            await engine.close()

    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1"):
        asyncio.run(call())
