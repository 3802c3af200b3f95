import subprocess
import sys

import listing_vision

PUBLIC = """
Access AsyncListingVisionClient Brand Bundle Calibration CallFailed Category ClientTls Evaluation ListingToClassify
ListingVisionClient ListingVisionError Logits Manifest OnnxEngine PhotoError PhotoLimits Predictor Preprocessing
Recipe Run Suggestion Taxonomy Trainer __version__ decide decode_photo evaluate load_bundle load_recipe prepare_photo
"""


def test_the_public_api_is_what_was_promised():
    assert listing_vision.__all__ == PUBLIC.split()
    assert set(dir(listing_vision)) == set(listing_vision.__all__)
    for name in listing_vision.__all__:
        assert getattr(listing_vision, name) is not None


def test_names_are_imported_when_they_are_used_and_need_no_torch():
    code = """
import sys, listing_vision
assert not {"torch", "grpc", "PIL", "pyarrow"} & set(sys.modules)
from listing_vision import Bundle, Taxonomy, Trainer, decide, evaluate, prepare_photo
import listing_vision.cli
assert not {"torch", "grpc"} & set(sys.modules)
from listing_vision import ListingVisionClient
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
