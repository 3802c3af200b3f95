import pytest

from training.cli.brand import add
from vision.errors import ListingVisionError


def test_a_photo_that_cannot_be_read_is_named(bundle, tmp_path):
    with pytest.raises(ListingVisionError, match=r"photo .*none\.jpg cannot be read: No such file"):
        add([tmp_path / "none.jpg"], bundle.folder, "Pink", tmp_path / "new")
