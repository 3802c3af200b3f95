"""A shard is committed by its entry; what a killed run leaves is completed or removed."""

import hashlib

import pytest

from serving.backfill.ledger import Entry, File, Ledger
from serving.errors import BackfillError, StorageError
from serving.storage import Store


def create_file(path: str, data: bytes) -> File:
    return File(path=path, sha256=hashlib.sha256(data).hexdigest(), num_rows=1, num_bytes=len(data))


def create_entry(shard: int, answers: bytes, letters: bytes | None = None) -> tuple[Entry, dict[str, bytes]]:
    files = {f"suggestions/{shard}.parquet": answers}
    if letters is not None:
        files[f"dead_letters/{shard}.parquet"] = letters
    found = [create_file(path, data) for path, data in files.items()]
    entry = Entry(
        shard=shard,
        num_listings=2,
        num_photos=5,
        suggestions=found[0],
        dead_letters=found[1] if letters is not None else None,
        results={"classified": 2},
        errors={"PHOTO_NOT_FOUND": 1} if letters is not None else {},
        seconds=1.5,
        finished_at="2026-01-01T00:00:00+00:00",
    )
    return entry, files


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "out"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_entries_come_back_as_they_were_written(store, elsewhere, monkeypatch):
    monkeypatch.setattr("serving.storage.READ_BATCH_SIZE", 2)
    if elsewhere:
        store = Store("memory://backfill-entries")
        store.remove_all()
    ledger = Ledger(store)
    entries = [create_entry(number, b"x", b"y" if number % 2 else None) for number in (3, 0, 1001)]
    for entry, files in entries:
        ledger.commit(entry, files)
    assert list(ledger.entries()) == sorted((entry for entry, _ in entries), key=lambda entry: entry.shard)
    totals = ledger.totals()
    assert (totals.num_shards, totals.num_listings, totals.num_photos) == (3, 6, 15)
    assert dict(totals.errors) == {"PHOTO_NOT_FOUND": 2}


def test_what_has_no_entry_is_removed(store):
    ledger = Ledger(store)
    ledger.commit(*create_entry(0, b"x"))
    store.write("suggestions/1.parquet", b"of a run that was killed before its entry")
    store.write("dead_letters/1.parquet", b"the same")
    store.write("_job/ledger/0000/shard-0000001.json.77.tmp", b"{")
    assert ledger.recover() == 3
    assert store.list_files("suggestions") == ["suggestions/0.parquet"]
    assert len(list(ledger.entries())) == 1


class Killed(Exception):
    pass


class KilledStore(Store):
    """Fails after so many writes and removals, as if the process had been killed."""

    def __init__(self, url, num_operations):
        super().__init__(url)
        self._left = num_operations

    def write(self, path, data):
        self._count()
        super().write(path, data)

    def remove(self, path):
        self._count()
        super().remove(path)

    def _count(self):
        if not self._left:
            raise Killed
        self._left -= 1


# Of `replace`: the entry that announces it, the suggestions, the dead letters (written or removed).
@pytest.mark.parametrize("num_operations", [1, 2, 3])
@pytest.mark.parametrize("letters_after", [b"new letters", None])
def test_a_replacement_that_was_killed_is_completed_or_undone(store, num_operations, letters_after):
    ledger = Ledger(store)
    old, files = create_entry(0, b"old", b"old letters")
    ledger.commit(old, files)
    new, files = create_entry(0, b"new", letters_after)
    with pytest.raises(Killed):
        Ledger(KilledStore(store.url, num_operations)).replace(old, new, files)
    ledger.recover()
    [entry] = ledger.entries()
    assert entry.pending_replacement is None
    assert store.sha256(entry.suggestions.path) == entry.suggestions.sha256
    assert entry.suggestions == (new.suggestions if num_operations > 1 else old.suggestions)
    if entry.dead_letters:
        assert store.sha256(entry.dead_letters.path) == entry.dead_letters.sha256
    else:
        assert store.list_files("dead_letters") == []
    assert bool(entry.errors) == bool(entry.dead_letters)
    assert ledger.recover() == 0


def test_a_replacement_takes_the_place(store):
    ledger = Ledger(store)
    old, files = create_entry(0, b"old", b"old letters")
    ledger.commit(old, files)
    new, files = create_entry(0, b"new")
    ledger.replace(old, new, files)
    assert list(ledger.entries()) == [new]
    assert store.read("suggestions/0.parquet") == b"new"
    assert store.list_files("dead_letters") == []


def test_a_file_that_is_neither_old_nor_new_is_an_error(store):
    ledger = Ledger(store)
    old, files = create_entry(0, b"old")
    ledger.commit(old, files)
    with pytest.raises(Killed):
        Ledger(KilledStore(store.url, 1)).replace(old, *create_entry(0, b"new"))
    store.write("suggestions/0.parquet", b"somebody else's")
    with pytest.raises(BackfillError, match=r"suggestions/0\.parquet is neither"):
        ledger.recover()


def test_an_entry_that_cannot_be_parsed_is_an_error(store):
    store.write_json("_job/ledger/0000/shard-0000000.json", {"shard": 0})
    with pytest.raises(BackfillError, match=r"shard-0000000\.json is not an entry"):
        list(Ledger(store).entries())
    store.write("_job/ledger/0000/shard-0000000.json", b"{")
    with pytest.raises(StorageError, match="is not readable"):
        list(Ledger(store).entries())


def test_what_cannot_be_listed_is_no_empty_folder(store, monkeypatch):
    ledger = Ledger(store)
    ledger.commit(*create_entry(0, b"x"))

    def broken(folder):
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr("serving.storage.os.scandir", broken)
    with pytest.raises(OSError, match="Input/output error"):
        ledger.recover()
    monkeypatch.undo()
    assert store.read("suggestions/0.parquet") == b"x"


def test_a_shard_whose_file_is_gone_is_not_whole(store):
    ledger = Ledger(store)
    for number in range(2):
        ledger.commit(*create_entry(number, b"x", b"y"))
    store.remove("dead_letters/1.parquet")
    assert [entry.shard for entry in ledger.complete_entries()] == [0]


def test_no_file_of_remote_storage_is_removed():
    store = Store("memory://backfill-ledger")
    store.remove_all()
    store.write("suggestions/0.parquet", b"another machine may be about to vouch for it")
    assert Ledger(store).recover() == 0
    assert store.list_files("suggestions") == ["suggestions/0.parquet"]
