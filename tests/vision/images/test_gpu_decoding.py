import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import vision.images.gpu_decoding
from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from training.recipe import Recipe, Stage
from training.trainer.loading.augmentation import create_crop
from vision.errors import DeviceDecoderUnavailable
from vision.images import Preprocessing, decode_photo, prepare_photo
from vision.images.gpu_decoding import DECODER_LIBRARIES, Box, DeviceDecoder, find_plain_crop

CPU = torch.device("cpu")
RECIPE = Recipe(stages=(Stage(photo_px=48, epochs=1),))
AT_LEAST_PX = int(48 / RECIPE.smallest_crop**0.5)
NONE = torch.empty(0, 0, 0, 3, dtype=torch.uint8)


def find_crop(data, seed=0):
    torch.manual_seed(seed)
    crop = create_crop(RECIPE, 48)
    return find_plain_crop(data, at_least_px=AT_LEAST_PX, choose_box=lambda photo: Box(**crop.make_params([photo])))


def decode_with_pillow(data, seed=0):
    torch.manual_seed(seed)
    photo = create_crop(RECIPE, 48)(Image.fromarray(decode_photo(data, at_least_px=AT_LEAST_PX)))
    return torch.from_numpy(np.array(photo))


def decode_on_device(*files, others=NONE, library=None):
    crops = [find_crop(data) for data in files]
    joined = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    return DeviceDecoder(CPU, library).decode_crops(joined, crops, others, photo_px=48)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(8, 9), (50, 301), (97, 83), (333, 401), (1301, 1007)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_crop_is_pillows_but_for_a_few_grey_values(size, options, mode, seed):
    data = encode_image(create_scene(*size).convert(mode), quality=90, **options)
    crop = find_crop(data, seed)
    joined = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    photos, refused = DeviceDecoder(CPU).decode_crops(joined, [crop], NONE, photo_px=48)
    assert (photos.shape, photos.dtype, refused) == ((1, 48, 48, 3), torch.uint8, [])
    differences = (photos[0].int() - decode_with_pillow(data, seed).int()).abs()
    assert differences.float().mean() < 1.5
    assert differences.max() <= 12


@pytest.mark.parametrize("size", [(64, 48), (1301, 1007), (4000, 3000)])
def test_a_whole_photo_is_what_the_model_is_served_but_for_a_few_grey_values(size):
    data = encode_image(create_scene(*size), quality=90)
    joined = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    photos, _ = DeviceDecoder(CPU).decode_crops(joined, [find_plain_crop(data, at_least_px=64)], NONE, photo_px=64)
    differences = np.abs(photos[0].numpy().astype(int) - prepare_photo(data, Preprocessing(input_px=64)))
    assert differences.mean() < 1.5
    assert differences.max() <= 12


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def create_rgb_jpeg():
    """Three components that are red, green and blue; only the Adobe mark says so."""
    data = encode_image(create_scene(), subsampling=0)
    at = data.index(b"\xff\xe0")
    (length,) = struct.unpack(">H", data[at + 2 : at + 4])
    return data[:at] + adobe(0) + data[at + 2 + length :]


PLAIN = {
    "as Pillow writes it": encode_image(create_scene()),
    "smallest side": encode_image(create_scene(8, 64)),
    "tagged upright": encode_image(create_scene(), exif=exif(1)),
    "sRGB profile": encode_image(create_scene(), icc_profile=profile("sRGB")),
    "profile that does not fit": encode_image(create_scene(), icc_profile=profile("LAB")),
    "broken profile": encode_image(create_scene(), icc_profile=b"not a profile" * 20),
    "grey": encode_image(create_scene().convert("L")),
}
NOT_PLAIN = {
    "empty": b"",
    "no photo": b"hello",
    "turned": encode_image(create_scene(), exif=exif(6)),
    "mirrored": encode_image(create_scene(), exif=exif(2)),
    "wide profile": encode_image(create_scene(), icc_profile=files.display_p3_profile("sRGB, it says")),
    "grey profile": encode_image(create_scene().convert("L"), icc_profile=files.grey_profile(1.0)),
    "CMYK": encode_image(create_scene().convert("CMYK")),
    "RGB components": create_rgb_jpeg(),
    "PNG": encode_image(create_scene(), "PNG"),
    "WebP": encode_image(create_scene(), "WEBP"),
    "two photos": encode_image(create_scene(), "MPO", save_all=True, append_images=[create_scene()]),
    "too small": encode_image(create_scene(7, 64)),
    "too many pixels": encode_image(Image.new("L", (7072, 7072))),
    "header only": encode_image(create_scene())[:30],
    "cut short": encode_image(create_scene())[:-50],
    "without an end marker": encode_image(create_scene())[:-2],
    "progressive": encode_image(create_scene(), progressive=True),
    "grey progressive": encode_image(create_scene().convert("L"), progressive=True),
    "extended sequential": encode_image(create_scene()).replace(b"\xff\xc0", b"\xff\xc1"),
    "lossless": files.jpeg_by_scans(64, 64, [files.jpeg_scan(spectrum=(1, 0), data=bytes(900))], frame=0xC3),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_photos_are_left_to_the_device(name):
    assert find_crop(PLAIN[name])


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_other_photos_are_left_to_pillow(name):
    assert find_crop(NOT_PLAIN[name]) is None


def remove_quantization_tables(data):
    """A header that reads well, before pixels that no decoder can make out."""
    return data.replace(b"\xff\xdb", b"\xff\xfe")


@pytest.mark.parametrize("library", DECODER_LIBRARIES)
def test_a_refused_photo_leaves_the_others_as_they_are(library):
    good, bad = encode_image(create_scene(200, 150)), remove_quantization_tables(encode_image(create_scene()))
    photos, refused = decode_on_device(good, bad, good, good, bad, library=library)
    assert refused == [1, 4]
    alone, _ = decode_on_device(good, library="torchvision")
    assert all(torch.equal(photos[index], alone[0]) for index in (0, 2, 3))
    assert not photos[[1, 4]].any()


def test_photos_keep_their_places_among_others():
    good = encode_image(create_scene(200, 150))
    others = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 48, 48, 3) + 7
    photos, refused = decode_on_device(b"", good, b"", others=others)
    assert not refused
    assert torch.equal(photos[[0, 2]], others)
    assert torch.equal(photos[1], decode_on_device(good)[0][0])


def test_photos_too_large_to_be_held_together_are_decoded_in_turns(monkeypatch):
    files = [encode_image(create_scene(60 + index, 60)) for index in range(5)]
    together, _ = decode_on_device(*files)
    groups = []
    decode = DeviceDecoder.decode_files
    monkeypatch.setattr(
        DeviceDecoder, "decode_files", lambda self, some: groups.append(len(some)) or decode(self, some)
    )
    monkeypatch.setattr(vision.images.gpu_decoding, "MAX_PIXELS_PER_CALL", 2 * 62 * 60)
    in_turns, _ = decode_on_device(*files)
    assert groups == [1, 2, 1, 1, 1]  # the first is the one that tries the device
    assert torch.equal(in_turns, together)


def refuse(*_, **__):
    raise RuntimeError("not compiled with nvJPEG support\nmore")


@pytest.fixture
def no_torchvision(monkeypatch):
    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)


def test_torchcodec_decodes_where_torchvision_cannot(no_torchvision):
    assert DeviceDecoder(CPU).decodes_with == "torchcodec"
    assert decode_on_device(encode_image(create_scene()))[1] == []


def test_a_library_that_was_asked_for_is_not_replaced(no_torchvision):
    with pytest.raises(DeviceDecoderUnavailable, match=r"on cpu \(torchvision: not compiled with nvJPEG support\)"):
        DeviceDecoder(CPU, "torchvision")


def test_a_library_that_lacks_one_of_its_own_is_told_with_its_name(no_torchvision, monkeypatch):
    def load(*_, **__):
        raise OSError("Could not load this library: image.so") from OSError("libcudart.so.13: cannot open")

    monkeypatch.setattr("torchcodec.decoders.decode_jpeg", load)
    with pytest.raises(DeviceDecoderUnavailable, match=r"torchcodec: .*image\.so: libcudart\.so\.13: cannot open\)"):
        DeviceDecoder(CPU)


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "Failed to decode batch: 5"])
def test_a_device_without_memory_refuses_no_photo(monkeypatch, message):
    decoder = DeviceDecoder(CPU)

    def fail(_):
        raise RuntimeError(message)

    monkeypatch.setattr(decoder, "decode_files", fail)
    data = encode_image(create_scene())
    joined = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.decode_crops(joined, [find_crop(data)], NONE, photo_px=48)


def test_a_device_without_memory_at_the_start_is_no_missing_library(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torchvision.io.decode_jpeg", fail)
    with pytest.raises(torch.OutOfMemoryError):
        DeviceDecoder(CPU)


# Of type 0, which is none, and value 6: a quarter turn.
_BLOCK = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 0, 1, 6, 0) + bytes(4)


def segment(marker, payload):
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


@pytest.mark.parametrize("library", DECODER_LIBRARIES)
@pytest.mark.parametrize(
    "inserted",
    [
        segment(0xE1, b"Exif\0\0" + _BLOCK),
        segment(0xE1, b"no Exif"[:6] + _BLOCK),
        segment(0xE1, b"XMP") + b"\xff" + segment(0xE1, b"Exif\0\0" + _BLOCK),
        segment(0xFE, b"\xff\xe1 in a comment") + segment(0xE1, b"Exif\0\0" + _BLOCK),
    ],
    ids=["EXIF", "another application's", "the second one", "after a comment"],
)
def test_an_orientation_that_pillow_does_not_read_turns_nothing(library, inserted):
    plain = encode_image(create_scene(200, 150))
    marked = plain[:20] + inserted + plain[20:]  # after SOI and the JFIF segment
    assert find_crop(marked) == find_crop(plain)._replace(num_bytes=len(marked))
    photos, refused = decode_on_device(plain, marked, library=library)
    assert refused == []
    assert torch.equal(photos[0], photos[1])


def test_a_device_that_cannot_decode_is_told_at_the_start(no_torchvision, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DeviceDecoderUnavailable, match=r"\(torchvision: .*nvJPEG support; torchcodec: .*decoders"):
        DeviceDecoder(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
@pytest.mark.parametrize("library", DECODER_LIBRARIES)
def test_a_gpu_decodes_what_the_cpu_decodes_while_it_is_busy(library):
    files = [encode_image(create_scene(400 + index, 300)) for index in range(32)]
    files[5] = remove_quantization_tables(files[5])
    crops = [find_crop(data) for data in files]
    joined = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    expected, refused = DeviceDecoder(CPU).decode_crops(joined, crops, NONE, photo_px=48)

    def decode(_):
        decoder = DeviceDecoder(torch.device("cuda"), library)
        work = torch.randn(4096, 4096, device="cuda")
        for _ in range(5):
            for _ in range(20):
                work = torch.nn.functional.normalize(work @ work)
            photos, refused_there = decoder.decode_crops(joined.pin_memory(), crops, NONE, photo_px=48)
            assert refused_there == refused == [5]
            # nvJPEG upsamples colours in its own way.
            assert (photos.cpu().float() - expected.float()).abs().mean() < 2

    # Several threads, as in a backfill: a decoder in use must not be another one's.
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(decode, range(3)))
