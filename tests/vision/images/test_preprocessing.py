import pytest

from vision.images.preprocessing import Preprocessing


def test_the_fingerprint_follows_the_pixels():
    assert Preprocessing(input_px=64).fingerprint() == Preprocessing(input_px=64).fingerprint()
    assert Preprocessing(input_px=64).fingerprint() != Preprocessing(input_px=65).fingerprint()


def test_another_decoder_revision_is_refused():
    with pytest.raises(ValueError, match="decoder_revision 0"):
        Preprocessing(input_px=64, decoder_revision=0)
