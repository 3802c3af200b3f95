import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from serving.api import responses
from serving.inference.triton import InProcessEngine, TritonEngine, check_golden_photos, wait_for_golden_photos
from serving.triton.process import LocalTriton
from serving.triton.repository import RepositoryOptions
from tests.support.helpers import create_scene, encode_image, list_children
from tests.support.hostile_photos import hostile_photos
from vision.engine import OnnxEngine
from vision.errors import EngineBroken, EngineUnavailable, PhotoDecoderCrashed, PhotoNotAnImage, PhotoTimedOut
from vision.images import prepare_photo


def test_triton_and_this_process_answer_alike(bundle, triton_installation):
    photos = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)

    async def both():
        triton = LocalTriton(bundle, triton_installation)
        triton.start()
        try:
            await asyncio.to_thread(triton.wait_until_listening)
            engine = TritonEngine(triton.address)
            await check_golden_photos(engine, bundle)
            assert await engine.fetch_backend() == "onnxruntime-cpu"
            together = await asyncio.gather(*(engine.infer(photos[:n]) for n in (1, 2, 7)))
            with pytest.raises(EngineBroken, match="shape"):
                await engine.infer(photos[:, :32])
            await engine.close()
        finally:
            triton.stop()
        assert not triton.repository.exists()
        local = InProcessEngine(bundle)
        wanted = await local.infer(photos)
        assert await local.fetch_backend() == "onnxruntime-cpu"
        await local.close()
        return together, wanted

    together, wanted = asyncio.run(both())
    for answer in together:
        for got, reference in zip(answer, wanted, strict=True):
            np.testing.assert_allclose(got, reference[: len(got)], atol=1e-4)


@pytest.fixture(scope="module", params=[True, False], ids=["isolated", "in the model's process"])
def triton(request, bundle, triton_installation):
    """A Triton whose model decodes, in processes of their own or in the model's."""
    triton = LocalTriton(bundle, triton_installation, RepositoryOptions(backend="python", isolate=request.param))
    triton.start()
    triton.wait_until_listening()
    asyncio.run(loaded(triton, bundle))
    yield triton
    triton.stop()


async def loaded(triton, bundle):
    engine = TritonEngine(triton.address)
    try:
        await wait_for_golden_photos(engine, bundle)
    finally:
        await engine.close()


def infer_encoded_files(triton, *listings, meanwhile=None):
    async def ask():
        engine = TritonEngine(triton.address)
        try:
            await engine.fetch_backend()
            assert engine.infer_encoded
            asked = asyncio.gather(*(engine.infer_encoded(photos) for photos in listings))
            if meanwhile:
                await meanwhile()
            return await asked
        finally:
            await engine.close()

    return asyncio.run(ask())


def test_encoded_photos_are_answered_as_pixels_are(triton, bundle):
    photos = [
        encode_image(create_scene(300, 200)),
        encode_image(create_scene(90, 64), "PNG"),
        encode_image(create_scene(800, 600), "WEBP"),
    ]
    preprocessing = bundle.info.preprocessing
    wanted = OnnxEngine(bundle).infer(np.stack([prepare_photo(photo, preprocessing) for photo in photos]))
    together, alone, broken = infer_encoded_files(triton, photos, photos[1:2], [photos[0], b"text", photos[2]])
    assert together.errors == [None] * 3
    for got, reference in zip(together.logits, wanted, strict=True):
        np.testing.assert_allclose(got, reference, atol=1e-4)
    np.testing.assert_allclose(alone.logits.category, wanted.category[1:2], atol=1e-4)
    np.testing.assert_allclose(broken.logits.category, wanted.category[[0, 2]], atol=1e-4)
    assert [type(error) for error in broken.errors] == [type(None), PhotoNotAnImage, type(None)]
    assert str(broken.errors[1]) == str(responses.prepare(b"text", preprocessing).error)


def test_every_hostile_photo_gets_its_own_error_from_triton(triton):
    drawer = [photo for photo in hostile_photos() if len(photo.data) <= responses.PHOTO_LIMITS.max_bytes and photo.data]
    found = infer_encoded_files(triton, *([photo.data] for photo in drawer))
    for photo, decoded in zip(drawer, found, strict=True):
        (error,) = decoded.errors
        if photo.may_time_out and isinstance(error, PhotoTimedOut):
            continue
        assert type(error) is (photo.expected or type(None)), photo.name
        assert len(decoded.logits.category) == (error is None)


def test_slow_photos_hold_a_model_for_a_bounded_time(triton):
    (bomb,) = (photo.data for photo in hostile_photos() if photo.name == "webp_zip_bomb")
    # Longer together than the gateway waits for Triton, were they all decoded.
    (decoded,) = infer_encoded_files(triton, [bomb] * 60)
    assert {type(error) for error in decoded.errors} <= {type(None), PhotoTimedOut}
    assert isinstance(decoded.errors[-1], PhotoTimedOut)
    assert len(decoded.logits.category) == decoded.errors.count(None)
    photo = encode_image(create_scene(300, 200))
    (after,) = infer_encoded_files(triton, [photo])
    assert after.errors == [None]


@pytest.mark.parametrize("triton", [True], indirect=True)
def test_a_photo_that_crashes_a_decoder_in_triton_costs_an_error_of_its_own(triton):
    photo = encode_image(create_scene(300, 200))

    async def kill_decoders():
        await asyncio.sleep(0.2)
        for child in list_children:
            os.kill(child, signal.SIGKILL)

    list_children = list_decode_workers(triton.pid)
    assert list_children
    for child in list_children:
        os.kill(child, signal.SIGSTOP)  # so that each has a photo, for certain, when it dies
    found = infer_encoded_files(triton, *[[photo]] * 6, meanwhile=kill_decoders)
    reasons = [type(decoded.errors[0]) for decoded in found]
    assert reasons.count(PhotoDecoderCrashed) == len(list_children)
    assert reasons.count(type(None)) == 6 - len(list_children)
    assert set(list_decode_workers(triton.pid)).isdisjoint(list_children)


def list_decode_workers(pid: int) -> list[int]:
    """The children, not the nurseries, that decode below a Triton."""

    def below(parent):
        for child in list_children(parent):
            yield child
            yield from below(child)

    decoding = {p for p in below(pid) if b"serving.decoding.fork_server" in Path(f"/proc/{p}/cmdline").read_bytes()}
    parents = {p: int(Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()[1]) for p in decoding}
    return sorted(p for p in decoding if parents[p] in decoding)


def test_no_server_is_unavailable():
    async def call():
        engine = TritonEngine("127.0.0.1:1")
        try:
            await engine.infer(np.zeros((1, 64, 64, 3), np.uint8))
        finally:
            await engine.close()

    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1"):
        asyncio.run(call())
