"""Odd photos that browsers show whole are decoded, and look like their scene."""

import pytest

from benchmarks.odd_photos import create_scenes, decode_plainly, decode_whole, iterate_odd_photos, measure_differences

# Pillow's; vision.images silences them, and pytest turns them on again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def photos():
    (scene,) = create_scenes(1)
    return list(iterate_odd_photos(scene))


def test_none_is_refused_and_each_looks_like_its_scene(photos):
    found = measure_differences(photos, decode_whole)
    assert len(found) == len(photos) > 100
    assert {kind: difference for kind, (difference,) in found.items() if difference is None or difference > 4} == {}


def test_a_decoder_that_ignores_colours_and_damage_is_found_out(photos):
    found = measure_differences(photos, decode_plainly)
    assert found["jpeg baseline"][0] < 4
    assert found["png, text of 5 MiB"] == [None]
    assert found["png, linear srgb"][0] > 20
    assert found["avif nclx, pq"][0] > 20
