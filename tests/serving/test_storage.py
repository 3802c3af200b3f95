"""Files of a folder of this machine, and of a file system elsewhere (fsspec's memory)."""

import json

import pytest

from serving.errors import StorageError
from serving.storage import Store


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    if request.param == "local":
        return Store(str(tmp_path / "out"))
    store = Store("memory://storage")
    store.remove_all()
    return store


def test_files_are_written_listed_read_and_removed(store, tmp_path):
    assert store.list_files("") == []
    store.write("b/2", b"two")
    store.write_json("b/1.json", {"name": "é"})
    (tmp_path / "local").write_bytes(b"three")
    store.upload("c", tmp_path / "local")
    assert store.list_files("") == ["b/1.json", "b/2", "c"]
    assert store.list_files("b") == ["b/1.json", "b/2"]
    assert (store.read("b/2"), store.read("c"), store.read_json("b/1.json")) == (b"two", b"three", {"name": "é"})
    with store.open("c") as file:
        assert file.read() == b"three"
    store.write("c", b"four")
    assert store.read("c") == b"four"
    assert store.sha256("c") == "04efaf080f5a3e74e1c29d1ca6a48569382cbbcd324e8d59d2b83ef21c039f00"
    store.remove("c")
    store.remove("c")
    assert (store.exists("c"), store.exists("b/2")) == (False, True)
    store.remove_all()
    store.remove_all()
    assert store.list_files("") == []


def test_a_missing_file_and_one_that_is_no_json_are_named(store):
    for read in (store.read, store.read_json, store.sha256):
        with pytest.raises(FileNotFoundError):
            read("gone")
    store.write("x.json", b"{")
    with pytest.raises(StorageError, match=r"x\.json is not readable"):
        store.read_json("x.json")


def test_many_files_are_read_in_their_order(store, monkeypatch):
    monkeypatch.setattr("serving.storage.READ_BATCH_SIZE", 3)
    paths = [f"{number}.json" for number in (4, 1, 3, 0, 2, 7, 5)]
    for path in paths:
        store.write_json(path, path)
    assert list(store.read_json_files(paths)) == paths


def test_one_process_of_a_machine_writes(store):
    other = Store(store.url)
    with store.lock("_job/lock"):
        assert other.is_locked("_job/lock")
        with pytest.raises(StorageError, match=r"another process \(pid \d+\) writes to"), other.lock("_job/lock"):
            pass
    assert not other.is_locked("_job/lock")


def test_asking_for_a_lock_writes_nothing(tmp_path):
    folder = tmp_path / "out"
    assert not Store(str(folder)).is_locked("_job/lock")
    assert not folder.exists()


def test_a_lock_that_may_only_be_read_can_be_asked_for(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "out"))
    with store.lock("_job/lock"):
        pass

    # Root may write whatever the mode says.
    def open_to_read(path, mode="r", *arguments, **named):
        if set(mode) & set("wa+x"):
            raise OSError(30, "Read-only file system", path)
        return open(path, mode, *arguments, **named)

    monkeypatch.setattr("serving.storage.open", open_to_read, raising=False)
    assert not store.is_locked("_job/lock")


def test_a_write_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write_json("x.json", 1)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        store.write_json("x.json", 2)
    monkeypatch.undo()
    assert json.loads((tmp_path / "x.json").read_text()) == 1
    assert store.list_files("") == ["x.json"]


def test_a_folder_that_was_removed_is_created_again_unless_it_must_be_the_same(store):
    is_new = store.require_same_folder()
    store.write("a", b"")
    store.remove_all()
    if store.is_local:
        assert is_new
        with pytest.raises(StorageError, match="has been removed or unmounted"):
            store.write("b", b"")
        assert not Store(store.url).exists("")
        assert Store(store.url).require_same_folder()
        store.write("b", b"")
        assert not Store(store.url).require_same_folder()
    else:  # object storage has no folders
        assert not is_new
        store.write("b", b"")


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr("serving.storage.os.scandir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        Store(str(tmp_path)).list_files("")
