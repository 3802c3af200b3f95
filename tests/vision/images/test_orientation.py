import numpy as np
import pytest
from PIL import Image

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image, mean_difference
from vision.images import (
    Preprocessing,
    decode_photo,
    prepare_photo,
)
from vision.images.orientation import TRANSPOSITIONS

PREPROCESSING = Preprocessing(input_px=64)

# The inverse of each EXIF orientation (TIFF 6.0, tag 274), applied to the stored pixels.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_turned_by_its_tag_equals_one_turned_beforehand(orientation):
    stored = STORED[orientation]
    upright = create_scene()
    turned = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = prepare_photo(encode_image(turned, quality=97, exif=exif), PREPROCESSING)
    wanted = prepare_photo(encode_image(upright, quality=97), PREPROCESSING)
    assert mean_difference(got, wanted) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_without_loss_not_a_pixel_differs(orientation, format, options):
    stored = STORED[orientation]
    turned = create_scene() if stored is None else create_scene().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_photo(encode_image(turned, format, exif=exif, **options), at_least_px=64)
    assert (got == np.asarray(create_scene())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_and_heif_are_turned_once_by_their_own_properties(orientation):
    stored = STORED[orientation]
    turned = create_scene() if stored is None else create_scene().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Pillow writes an AVIF's orientation as the properties irot and imir.
    got = decode_photo(encode_image(turned, "AVIF", exif=exif, quality=95), at_least_px=64)
    assert mean_difference(got, np.asarray(create_scene())) < 3

    quarters, mirrored = {1: (0, 0), 2: (2, 1), 3: (2, 0), 4: (0, 1), 5: (1, 1), 6: (3, 0), 7: (3, 1), 8: (1, 0)}[
        orientation
    ]
    properties = [files.rotation_property(quarters)] + [files.box(b"imir", b"\0")] * mirrored
    tag = files.exif_item(2, files.exif(files.short_tag(0x0112, orientation)))
    data = files.heif(files.hevc_item(*properties), tag, references=[(b"cdsc", 2, [1])])
    shown = {value: create_scene().transpose(turn) for value, turn in TRANSPOSITIONS.items()} | {1: create_scene()}
    got = decode_photo(data, at_least_px=64)
    assert got.shape == np.asarray(shown[orientation]).shape
    assert mean_difference(got, np.asarray(shown[orientation])) < 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "words", [b"tiff:Orientation='6'", b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"]
)
def test_an_orientation_in_xmp_alone_is_not_heeded_in_any_format(format, words):
    xmp = b"<x:xmpmeta><rdf:Description " + words + b"/></x:xmpmeta>"
    data = encode_image(create_scene(), format, xmp=xmp) if format != "PNG" else encode_png_with_xmp(xmp)
    assert words in data
    plain = encode_image(create_scene(), format)
    assert (decode_photo(data, at_least_px=64) == decode_photo(plain, at_least_px=64)).all()


def encode_png_with_xmp(xmp):
    text = files.png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    return files.png(96, 64, files.scanlines(np.asarray(create_scene())), colour=2, before=text)


def test_an_exif_block_in_a_text_chunk_is_not_heeded():
    """ImageMagick's, from before PNG had a chunk for it; browsers read that chunk only."""
    block = files.exif(files.short_tag(0x0112, 6))
    text = files.png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n%s" % (len(block), block.hex().encode()))
    data = files.png(96, 64, files.scanlines(np.asarray(create_scene())), colour=2, before=text)
    assert (decode_photo(data, at_least_px=64) == np.asarray(create_scene())).all()
