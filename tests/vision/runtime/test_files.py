import hashlib
import os

import pytest

from vision.runtime.files import compute_sha256, replace_file, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "état.json"
    write_atomically(path, "old")
    write_atomically(path, "naïve")
    assert path.read_text(encoding="utf-8") == "naïve"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == [path.name]


def test_a_failure_keeps_what_was_there_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")

    def fail_half_way():
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_reader_sees_the_old_content_until_all_of_the_new_is_there(tmp_path):
    path = tmp_path / "manifest"
    path.write_text("old")
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_sha256_is_that_of_the_content(tmp_path):
    path = tmp_path / "photo"
    path.write_bytes(b"bytes" * 100_000)
    assert compute_sha256(path) == hashlib.sha256(b"bytes" * 100_000).hexdigest()
