from tests.support import photo_files as files
from tests.support.helpers import create_scene, encode_image
from vision.images.jpeg_segments import END_MARKER, SCAN_MARKER, has_end_marker, is_baseline, iterate_jpeg_segments

WHOLE = encode_image(create_scene(), progressive=True, restart_marker_blocks=2)


def test_each_segment_is_found_in_its_place():
    found = list(iterate_jpeg_segments(files.with_segments(WHOLE, files.jpeg_segment(0xFE, b"\xff\xda\xff\xd9"))))
    assert found[0] == (0xFE, 4)
    assert found[-1][0] == END_MARKER
    # Pillow writes ten scans.
    assert [marker for marker, _ in found].count(SCAN_MARKER) == 10
    assert not {marker for marker, _ in found} & {0, *range(0xD0, 0xD8)}


def test_the_end_marker_ends_the_search():
    assert has_end_marker(WHOLE)
    assert not has_end_marker(WHOLE[:-2])
    assert len(list(iterate_jpeg_segments(WHOLE + WHOLE))) == len(list(iterate_jpeg_segments(WHOLE)))


def test_only_files_of_a_baseline_frame_are_baseline():
    baseline = encode_image(create_scene())
    assert is_baseline(baseline)
    # A marker in another segment is none.
    assert is_baseline(files.with_segments(baseline, files.jpeg_segment(0xFE, b"\xff\xc2")))
    assert not is_baseline(WHOLE)
    assert not is_baseline(baseline.replace(b"\xff\xc0", b"\xff\xc1"))
    assert not is_baseline(b"")
