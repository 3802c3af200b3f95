import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hostile_photos import hostile_photos
from tests.support.photo_files import heif, hevc_item
from vision.errors import PhotoError
from vision.images import PhotoLimits, Preprocessing, decode_photo, prepare_photo, read_size_px

# Pillow's; vision.images silences them, and pytest turns them on again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

HEADS = (
    b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
    b"\xff\xd8\xff\xe1\0\x20Exif\0\0II*\0\x08\0\0\0",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x20\0\0\0\x20\x08\2\0\0\0\xfc\x18\xed\xa3",
    b"GIF89a\x20\0\x20\0\x91\0\0",
    b"RIFF\xff\0\0\0WEBPVP8 ",
    b"RIFF\xff\0\0\0WEBPVP8L",
    b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0",
    b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    heif(hevc_item())[:300],
)
SMALL = [photo.data for photo in hostile_photos() if len(photo.data) < 20_000 and not photo.is_slow]
LIMITS = PhotoLimits(max_pixels=2_000_000)


@pytest.mark.parametrize("hostile", hostile_photos(), ids=lambda hostile: hostile.name)
def test_the_drawer(hostile):
    if hostile.expected:
        with pytest.raises(PhotoError) as refused:
            decode_photo(hostile.data, at_least_px=64)
        assert type(refused.value) is hostile.expected, hostile.story
        return
    photo = decode_photo(hostile.data, at_least_px=64)
    assert photo.dtype == np.uint8
    if hostile.shows is None:
        assert photo.ndim == 3
        assert photo.shape[2] == 3
    else:
        shown = np.asarray(hostile.shows)
        assert photo.shape == shown.shape, hostile.story
        assert np.abs(photo.astype(int) - shown).mean() < 4, hostile.story


@pytest.mark.parametrize("hostile", hostile_photos(), ids=lambda hostile: hostile.name)
def test_a_header_is_read_or_refused(hostile):
    with contextlib.suppress(PhotoError):
        width, height = read_size_px(hostile.data)
        assert 0 < width * height <= PhotoLimits().max_pixels


def test_each_photo_has_its_story():
    assert all(photo.story.endswith(".") for photo in hostile_photos())
    assert len({photo.data for photo in hostile_photos()}) == len(hostile_photos())


def assert_photo_or_photo_error(data):
    with contextlib.suppress(PhotoError):
        photo = prepare_photo(data, Preprocessing(input_px=32), LIMITS)
        assert (photo.shape, photo.dtype) == ((32, 32, 3), np.uint8)


@given(st.binary(max_size=2000))
def test_any_bytes_give_a_photo_or_a_photo_error(data):
    assert_photo_or_photo_error(data)


@given(st.sampled_from(HEADS), st.lists(st.binary(max_size=300) | st.sampled_from(SMALL), max_size=3))
def test_any_bytes_behind_a_photos_first_ones_do_too(head, rest):
    assert_photo_or_photo_error(head + b"".join(rest))


@settings(max_examples=300)
@given(st.sampled_from(SMALL), st.data())
def test_a_damaged_photo_does_too(whole, data):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.sampled_from([0, 1, 2, 4, 40, 400]))
        piece = st.binary(max_size=8) | st.just(bytes(damaged[place : place + length]) * 2)
        damaged[place : place + length] = data.draw(piece)
    assert_photo_or_photo_error(bytes(damaged))


@given(st.sampled_from(SMALL), st.sampled_from(SMALL), st.data())
def test_the_head_of_one_photo_on_another_does_too(one, other, data):
    assert_photo_or_photo_error(
        one[: data.draw(st.integers(0, len(one)))] + other[data.draw(st.integers(0, len(other))) :]
    )
