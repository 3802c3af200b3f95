"""The model that decodes on a device, in a real Triton; here the device is a CPU, with the same code."""

import asyncio
import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

from listing_vision.calibrate import calibrate
from serving.inference.health import wait_for_golden_photos
from serving.inference.model_names import MODEL_NAME
from serving.inference.triton import TritonEngine
from serving.triton.config import RepositoryOptions
from serving.triton.process import LocalTriton
from tests.support.helpers import create_scene, encode_image
from tests.support.serving_process import list_process_tree
from vision.bundle import load_bundle
from vision.engine import Logits
from vision.errors import PhotoNotAnImage, PhotoTruncated
from vision.images import prepare_photo

PHOTOS = {
    "jpeg": encode_image(create_scene(640, 480), quality=90),
    "other jpeg": encode_image(create_scene(300, 500), quality=80),
    "png": encode_image(create_scene(90, 70), "PNG"),
    "rotated": encode_image(
        create_scene(200, 150), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "progressive": encode_image(create_scene(640, 480), progressive=True),
}
NOT_A_PHOTO = b"hello"
CUT_SHORT = encode_image(create_scene(640, 480))[:-500]
NO_TABLES = encode_image(create_scene()).replace(b"\xff\xdb", b"\xff\xfe")


@contextlib.contextmanager
def run_triton(bundle, installation, **options):
    packages = installation.model_environment / "lib"
    if not list(packages.glob("python*/site-packages/packages_of_torch.pth")):
        pytest.skip("Triton was installed before its models could use this environment's PyTorch; install it again")
    server = LocalTriton(bundle, installation, RepositoryOptions(backend="python-gpu", max_batch_size=8, **options))
    config = server.repository / MODEL_NAME / "config.pbtxt"
    # Fewer decoders than photos of one listing, on any machine.
    two = r'\1"2"'
    written, number = re.subn(r'(key: "num_decoders"\s+value \{\s+string_value: )"\d+"', two, config.read_text())
    assert number == 1
    config.write_text(re.sub("KIND_GPU", "KIND_CPU", written))
    server.start()
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def triton(bundle, triton_installation):
    with run_triton(bundle, triton_installation) as server:
        yield server


def run_with_engine(triton, bundle, work, *, backend="torch-cuda-nvjpeg"):
    async def run():
        engine = TritonEngine(triton.address)
        try:
            await wait_for_golden_photos(engine, bundle)
            assert await engine.fetch_backend() == backend
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def test_files_have_the_logits_of_their_pixels(triton, bundle):
    files = list(PHOTOS.values())
    pixels = np.stack([prepare_photo(data, bundle.info.preprocessing) for data in files])

    async def both(engine):
        return await engine.infer(pixels), await engine.infer_encoded(files)

    of_pixels, of_files = run_with_engine(triton, bundle, both)
    assert of_files.errors == [None] * len(files)
    # The device's resizing differs by a few grey values; others than plain JPEGs are decoded by the CPU.
    np.testing.assert_allclose(of_files.logits.category[:2], of_pixels.category[:2], atol=0.3)
    np.testing.assert_allclose(of_files.logits.category[2:], of_pixels.category[2:], atol=1e-3)


def has_loaded(server, library):
    """Whether a process of Triton has mapped a file of the library."""
    return any(library in Path(f"/proc/{pid}/maps").read_text() for pid in list_process_tree(server.pid))


def test_torchcodec_decodes_under_a_backend_name_of_its_own(bundle, triton_installation, triton):
    photos = [PHOTOS["jpeg"], NO_TABLES, PHOTOS["other jpeg"]]

    async def infer(engine):
        return await engine.infer_encoded(photos)

    expected = run_with_engine(triton, bundle, infer)
    with run_triton(bundle, triton_installation, gpu_decoder="torchcodec") as server:
        found = run_with_engine(server, bundle, infer, backend="torch-cuda-torchcodec")
        assert has_loaded(server, "libtorchcodec")
    assert not has_loaded(triton, "libtorchcodec")
    assert [error is None for error in found.errors] == [True, False, True]
    # On a CPU both libraries call libjpeg-turbo.
    np.testing.assert_allclose(found.logits.category, expected.logits.category, atol=1e-3)


def test_bad_photos_have_an_error_each_and_the_others_have_logits(triton, bundle):
    photos = [NOT_A_PHOTO, PHOTOS["jpeg"], CUT_SHORT, NO_TABLES, PHOTOS["png"]]

    async def infer(engine):
        return await engine.infer_encoded(photos), await engine.infer_encoded([PHOTOS["jpeg"]])

    found, alone = run_with_engine(triton, bundle, infer)
    assert [type(error) for error in found.errors[:3]] == [PhotoNotAnImage, type(None), PhotoTruncated]
    # The device refuses a JPEG without tables; its error comes from the decoder on the CPU.
    assert found.errors[3] is not None
    assert found.errors[4] is None
    assert len(found.logits.category) == 2
    np.testing.assert_allclose(found.logits.category[0], alone.logits.category[0], atol=1e-3)


def test_more_photos_than_decoders_each_have_logits(triton, bundle):
    pngs = [encode_image(create_scene(200 + 8 * i, 150), "PNG") for i in range(7)]

    async def infer(engine):
        together = await engine.infer_encoded([*pngs, PHOTOS["jpeg"]])
        return together, [await engine.infer_encoded([photo]) for photo in (*pngs, PHOTOS["jpeg"])]

    together, alone = run_with_engine(triton, bundle, infer)
    assert together.errors == [None] * 8
    for row, one in zip(together.logits.category, alone, strict=True):
        np.testing.assert_allclose(row, one.logits.category[0], atol=1e-3)


def test_listings_in_one_batch_each_get_their_own_logits(triton, bundle):
    listings = [
        [PHOTOS["jpeg"]],
        [PHOTOS["png"], PHOTOS["other jpeg"]],
        [PHOTOS["rotated"]] * 3,
        [PHOTOS["other jpeg"]],
    ]

    async def infer(engine):
        alone = [await engine.infer_encoded(photos) for photos in listings]
        together = await asyncio.gather(*(engine.infer_encoded(photos) for photos in listings * 8))
        pixels = [engine.infer(bundle.golden.photos_nhwc) for _ in range(8)]
        mixed = await asyncio.gather(*pixels, *(engine.infer_encoded(photos) for photos in listings))
        return alone, together, mixed

    alone, together, mixed = run_with_engine(triton, bundle, infer)
    for number, result in enumerate(together):
        np.testing.assert_allclose(result.logits.category, alone[number % 4].logits.category, atol=1e-3)
    for logits in mixed[:8]:
        assert isinstance(logits, Logits)
        np.testing.assert_allclose(logits.category, bundle.golden.category_logits, atol=0.01)
    for result, expected in zip(mixed[8:], alone, strict=True):
        np.testing.assert_allclose(result.logits.category, expected.logits.category, atol=1e-3)


def test_thresholds_are_certified_on_what_the_device_decoded(triton, bundle, synthetic_dataset, tmp_path):
    manifest = str(synthetic_dataset / "manifest.parquet")
    certified = {}
    for decode_in in ("triton", "gateway"):
        options = {"triton": triton.address, "decode_in": decode_in}
        calibrate(None, bundle.folder, tmp_path / decode_in, manifest, **options)
        certified[decode_in] = load_bundle(tmp_path / decode_in).calibration
    backends = {decode_in: calibration.certifies["backend"] for decode_in, calibration in certified.items()}
    assert backends == {"triton": "torch-cuda-nvjpeg", "gateway": "torch-cuda"}
    # The same listings, and logits that differ a little, as the pixels do.
    first, second = certified.values()
    assert first.expected.keys() == second.expected.keys()
    assert first.category_temperature != second.category_temperature
    assert first.category_temperature == pytest.approx(second.category_temperature, rel=0.1)
