import pytest

from vision.decoding.fork_server import DecodeSettings, parse_photo_error
from vision.errors import PhotoDecoderCrashed, PhotoServiceBusy, PhotoTruncated
from vision.images import PhotoLimits, Preprocessing


def test_settings_survive_their_json():
    settings = DecodeSettings(
        preprocessing=Preprocessing(input_px=64), limits=PhotoLimits(max_bytes=1000), max_memory_bytes=1 << 30
    )
    assert DecodeSettings.from_json(settings.to_json()) == settings


def test_a_workers_memory_holds_the_largest_photo_and_its_pixels():
    settings = DecodeSettings(
        preprocessing=Preprocessing(input_px=64), limits=PhotoLimits(max_bytes=1000), max_memory_bytes=1 << 30
    )
    assert settings.shared_memory_bytes == 3 * 64 * 64


def test_a_photo_error_is_read_with_its_message():
    error = parse_photo_error(b"PhotoTruncated\nit is cut short")
    assert type(error) is PhotoTruncated
    assert str(error) == "it is cut short"
    assert type(parse_photo_error(b"PhotoServiceBusy\ntry again")) is PhotoServiceBusy


@pytest.mark.parametrize("response", [b"", b"nonsense", b"ListingVisionError\nx", b"Sequence\nx", b"\xff\xff\n"])
def test_any_other_response_of_a_worker_is_a_crash(response):
    assert type(parse_photo_error(response)) is PhotoDecoderCrashed
