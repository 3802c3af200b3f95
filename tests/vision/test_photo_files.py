"""Photos are read from files, URLs and parts of tar shards; whatever is wrong is an OSError that names the place."""

import fsspec
import pytest

from vision.photo_files import read_photo


@pytest.fixture(params=["path", "file", "memory"])
def shard(request, tmp_path):
    """URL of ten bytes, 0 to 9, as a shard."""
    if request.param == "memory":
        url = f"memory://{tmp_path.name}/s.tar"
        with fsspec.open(url, "wb") as file:
            file.write(bytes(range(10)))
        return url
    (tmp_path / "s.tar").write_bytes(bytes(range(10)))
    return str(tmp_path / "s.tar") if request.param == "path" else f"file://{tmp_path}/s.tar"


@pytest.mark.parametrize(("offset", "size"), [(0, 10), (3, 4), (9, 1), (10, 0), (0, 0)])
def test_a_photo_is_read_from_inside_a_shard(shard, offset, size):
    assert read_photo(f"{shard}#{offset}+{size}") == bytes(range(offset, offset + size))


@pytest.mark.parametrize("place", ["8+3", "10+1", "11+1", "0+99999999999999"])
def test_a_shard_cut_short_is_named(shard, place):
    with pytest.raises(OSError, match="copy it again") as caught:
        read_photo(f"{shard}#{place}")
    assert f"{shard}#{place}" in str(caught.value)


@pytest.mark.parametrize("place", ["", "3", "+", "-1+3", "1+2+3", "a+b", "1_0+2", "٣+1", "1+2 ", "1" * 40 + "+1"])
def test_a_place_that_is_none_is_named(shard, place):
    with pytest.raises(OSError, match=r"is not offset\+size") as caught:
        read_photo(f"{shard}#{place}")
    assert f"{shard}#{place}" in str(caught.value)


def test_missing_shards_and_photos_with_a_hash_sign(tmp_path):
    for url in (f"{tmp_path}/none.tar#0+1", f"memory://{tmp_path.name}/none.tar#0+1"):
        with pytest.raises(FileNotFoundError):
            read_photo(url)
    (tmp_path / "photo #1+2.jpg").write_bytes(b"x")
    assert read_photo(str(tmp_path / "photo #1+2.jpg")) == b"x"
