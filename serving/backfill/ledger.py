"""Which shards are done: one small file each, written after the shard's suggestions, which it vouches for by checksum.

A shard that has an entry is done; whatever else lies there is not. A shard that is answered again, for its dead
letters, first says so in its entry: until the new files are in place both checksums are right, and a run that was
killed in between is tidied up by the next.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from serving.errors import BackfillError
from serving.storage import Store

__all__ = ["LEDGER_FOLDER", "Entry", "File", "Ledger"]

LEDGER_FOLDER = "_job/ledger"
_SHARDS_PER_FOLDER = 1000


@dataclass(frozen=True, kw_only=True)
class File:
    path: str
    sha256: str
    num_rows: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A shard that is done."""

    shard: int
    num_listings: int
    num_photos: int
    suggestions: File
    dead_letters: File | None
    """None: every photo could be used."""
    results: Mapping[str, int]
    """Listings by what became of them."""
    errors: Mapping[str, int]
    """Photos that could not be used, by reason."""
    seconds: float
    """From its first photo's begin to its end; shards overlap."""
    finished_at: str
    """UTC, ISO 8601."""
    pending_replacement: "Entry | None" = None
    """What is being written in its place."""

    @property
    def num_failed_photos(self) -> int:
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Entry":
        """Raises KeyError or TypeError where it is none."""
        return cls(
            **{
                **raw,
                "suggestions": File(**raw["suggestions"]),
                "dead_letters": File(**raw["dead_letters"]) if raw["dead_letters"] else None,
                "pending_replacement": cls.from_json(raw["pending_replacement"])
                if raw["pending_replacement"]
                else None,
            }
        )


class Ledger:
    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> Iterator[Entry]:
        """Of all shards that are done, in order."""
        paths = [path for path in self._store.list_files(LEDGER_FOLDER) if path.endswith(".json")]
        for path, raw in zip(paths, self._store.read_json_files(paths), strict=True):
            try:
                yield Entry.from_json(raw)
            except (TypeError, KeyError) as error:
                raise BackfillError(f"{self._store.full_path(path)} is not an entry of a ledger: {error!r}") from error

    def commit(self, entry: Entry, files: Mapping[str, bytes]) -> None:
        """Write a shard's files and then its entry; nothing else makes it done."""
        for path, data in files.items():
            self._store.write(path, data)
        self._write(entry)

    def replace(self, old: Entry, new: Entry, files: Mapping[str, bytes]) -> None:
        """Put new suggestions of a shard in the place of old ones, at no moment with both or neither."""
        self._write(replace(old, pending_replacement=new))
        for path, data in files.items():
            self._store.write(path, data)
        if old.dead_letters and not new.dead_letters:
            self._store.remove(old.dead_letters.path)
        self._write(new)

    def recover(self) -> int:
        """End what a killed run had begun to replace, and remove what it left; the number of files removed.

        Raises:
            BackfillError: a file is neither what it was nor what it was to become.
        """
        known = set()
        for entry in self.entries():
            finished = self._finish_replacement(entry) if entry.pending_replacement else entry
            known |= {file.path for file in (finished.suggestions, finished.dead_letters) if file}
        orphans: list[str] = []
        # On storage elsewhere another machine may be about to vouch for them; a shard's next run overwrites them.
        if self._store.is_local:
            left = [path for folder in ("suggestions", "dead_letters") for path in self._store.list_files(folder)]
            orphans = [path for path in left if path not in known]
        orphans += [path for path in self._store.list_files("_job") if path.endswith(".tmp")]
        for path in orphans:
            self._store.remove(path)
        return len(orphans)

    def _finish_replacement(self, entry: Entry) -> Entry:
        """The files were written in the order suggestions, dead letters; whatever is not all new is made old again.

        Old suggestions with new dead letters do not occur; new suggestions with old dead letters are those of a run
        that was killed between the two, whose listings are answered anew by the next `retry`.
        """
        new = entry.pending_replacement
        assert new is not None
        found = self._store.sha256(entry.suggestions.path)
        old = replace(entry, pending_replacement=None)
        if found == entry.suggestions.sha256:
            self._write(old)
            return old
        if found != new.suggestions.sha256:
            raise BackfillError(
                f"{self._store.full_path(entry.suggestions.path)} is neither what it was nor what replaces it"
            )
        letters = new.dead_letters or entry.dead_letters
        there = letters is not None and self._store.exists(letters.path)
        if letters and there and self._store.sha256(letters.path) != (new.dead_letters or letters).sha256:
            # The old dead letters: kept, so that the next retry takes them up once more.
            finished = replace(new, dead_letters=entry.dead_letters, errors=entry.errors)
        else:
            finished = new
            if letters and there and new.dead_letters is None:
                self._store.remove(letters.path)
        self._write(finished)
        return finished

    def complete_entries(self) -> Iterator[Entry]:
        """Entries whose files are there; the others' shards have to be done again."""
        there = {path for folder in ("suggestions", "dead_letters") for path in self._store.list_files(folder)}
        for entry in self.entries():
            if all(file.path in there for file in (entry.suggestions, entry.dead_letters) if file):
                yield entry

    def totals(self) -> "Totals":
        return Totals.from_entries(self.entries())

    def _write(self, entry: Entry) -> None:
        self._store.write_json(
            f"{LEDGER_FOLDER}/{entry.shard // _SHARDS_PER_FOLDER:04d}/shard-{entry.shard:07d}.json", entry.to_json()
        )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over shards that are done."""

    num_shards: int
    num_listings: int
    num_photos: int
    results: Mapping[str, int]
    errors: Mapping[str, int]
    last_finished_at: str

    @classmethod
    def from_entries(cls, entries: Iterator[Entry]) -> "Totals":
        results: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        num_shards = num_listings = num_photos = 0
        last = ""
        for entry in entries:
            num_shards += 1
            num_listings += entry.num_listings
            num_photos += entry.num_photos
            results.update(entry.results)
            errors.update(entry.errors)
            last = max(last, entry.finished_at)
        return cls(
            num_shards=num_shards,
            num_listings=num_listings,
            num_photos=num_photos,
            results=results,
            errors=errors,
            last_finished_at=last,
        )
