import pytest

from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from vision.errors import PhotoNotAnImage
from vision.images.formats import ALLOWED_FORMATS, detect_format


def test_the_accepted_formats():
    assert ALLOWED_FORMATS == ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")


@pytest.mark.parametrize("format", ALLOWED_FORMATS)
def test_a_format_is_known_by_its_first_bytes(format):
    data = files.heif(files.hevc_item()) if format == "HEIF" else encode_image(create_scene(), format)
    assert detect_format(data[:64]) == format


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("BMP", encode_image(create_scene(), "BMP")),
        ("TIFF", encode_image(create_scene(), "TIFF")),
        ("ICO", encode_image(create_scene(), "ICO")),
        ("JPEG XL", b"\xff\x0a" + bytes(20)),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)),
        ("JPEG 2000", encode_image(create_scene(), "JPEG2000")),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("PDF", b"%PDF-1.7\n"),
    ],
)
def test_a_refusal_names_the_format_and_the_accepted_ones(name, data):
    accepted = ", ".join(ALLOWED_FORMATS)
    with pytest.raises(PhotoNotAnImage, match=f"it is of format {name}, and {accepted} are accepted; save it as JPEG"):
        detect_format(data)


def test_a_refusal_of_something_else_shows_its_first_bytes():
    with pytest.raises(PhotoNotAnImage, match=r"68656c6c6f2c2049 are those of no accepted format \(JPEG, PNG"):
        detect_format(b"hello, I am a text file")
