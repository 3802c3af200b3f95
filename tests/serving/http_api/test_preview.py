"""Previews for the page, of photos that a browser cannot show."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from serving.http_api.errors import HttpRefusal
from serving.http_api.preview import PREVIEW_PX, PreviewMaker
from tests.support import photo_files
from tests.support.helpers import create_scene, encode_image, mean_difference


def create_previews(*photos):
    async def create():
        previews = PreviewMaker()
        try:
            return await asyncio.gather(*map(previews.create, photos), return_exceptions=True)
        finally:
            await previews.close()

    return asyncio.run(create())


def test_a_heic_is_shown_upright_in_its_own_proportions():
    flat, turned = create_previews(
        photo_files.heif(photo_files.hevc_item()),
        photo_files.heif(photo_files.hevc_item(photo_files.rotation_property(3))),
    )
    scene = create_scene()
    for preview, shown in ((flat, scene), (turned, scene.transpose(Image.Transpose.ROTATE_270))):
        with Image.open(io.BytesIO(preview)) as opened:
            assert opened.format == "JPEG"
            assert max(opened.size) == PREVIEW_PX
            assert opened.width / opened.height == pytest.approx(shown.width / shown.height, rel=0.01)
            assert mean_difference(opened.resize(shown.size), np.asarray(shown)) < 6


def test_what_is_no_photo_is_refused_and_many_photos_wait_for_another_time():
    photo = encode_image(create_scene())
    found = create_previews(b"no photo", *[photo] * 40)
    assert isinstance(found[0], HttpRefusal)
    assert found[0].violations[0].reason == "PHOTO_NOT_AN_IMAGE"
    refused = [one for one in found[1:] if isinstance(one, HttpRefusal)]
    assert refused
    assert {one.reason for one in refused} == {"TOO_BUSY"}
    assert any(isinstance(one, bytes) for one in found)
