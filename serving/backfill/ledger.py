"""The ledger of committed shards: one small file each, written after the shard's tables, with their checksums.

A shard is committed if and only if it has an entry. Before `retry` replaces the files of a shard, its entry announces
the new ones: until they are in place both checksums are valid, and the next run completes or undoes the replacement of
a run that was killed in between.
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
    """A committed shard."""

    shard: int
    num_listings: int
    num_photos: int
    suggestions: File
    dead_letters: File | None
    """None: no photo failed."""
    results: Mapping[str, int]
    """Number of listings by result."""
    errors: Mapping[str, int]
    """Number of failed photos by reason."""
    seconds: float
    """From the first photo's begin to the last one's end; shards overlap in time."""
    finished_at: str
    """UTC, ISO 8601."""
    pending_replacement: "Entry | None" = None
    """The entry that is about to replace this one."""

    @property
    def num_failed_photos(self) -> int:
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Entry":
        """Parse an entry. Raises KeyError or TypeError where it is none."""
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
        """Yield the entries of all committed shards, in order."""
        paths = [path for path in self._store.list_files(LEDGER_FOLDER) if path.endswith(".json")]
        for path, raw in zip(paths, self._store.read_json_files(paths), strict=True):
            try:
                yield Entry.from_json(raw)
            except (TypeError, KeyError) as error:
                raise BackfillError(f"{self._store.full_path(path)} is not an entry of a ledger: {error!r}") from error

    def commit(self, entry: Entry, files: Mapping[str, bytes]) -> None:
        """Write a shard's files and then its entry, which commits it."""
        for path, data in files.items():
            self._store.write(path, data)
        self._write(entry)

    def replace(self, old: Entry, new: Entry, files: Mapping[str, bytes]) -> None:
        """Replace the files of a shard; at every moment one of the two entries describes what is there."""
        self._write(replace(old, pending_replacement=new))
        for path, data in files.items():
            self._store.write(path, data)
        if old.dead_letters and not new.dead_letters:
            self._store.remove(old.dead_letters.path)
        self._write(new)

    def recover(self) -> int:
        """Complete or undo the replacements of a killed run, and remove its orphaned files; return how many.

        Raises:
            BackfillError: a file has neither its old nor its new content.
        """
        known = set()
        for entry in self.entries():
            finished = self._finish_replacement(entry) if entry.pending_replacement else entry
            known |= {file.path for file in (finished.suggestions, finished.dead_letters) if file}
        orphans: list[str] = []
        # On remote storage another machine may be about to commit them; the next run of a shard overwrites them.
        if self._store.is_local:
            left = [path for folder in ("suggestions", "dead_letters") for path in self._store.list_files(folder)]
            orphans = [path for path in left if path not in known]
        orphans += [path for path in self._store.list_files("_job") if path.endswith(".tmp")]
        for path in orphans:
            self._store.remove(path)
        return len(orphans)

    def _finish_replacement(self, entry: Entry) -> Entry:
        """Return the entry that describes the files; suggestions were written first, dead letters second.

        New suggestions with old dead letters are those of a run that was killed between the two writes; the next
        `retry` classifies their listings again. Old suggestions with new dead letters cannot occur.
        """
        new = entry.pending_replacement
        assert new is not None
        found = self._store.sha256(entry.suggestions.path)
        old = replace(entry, pending_replacement=None)
        if found == entry.suggestions.sha256:
            self._write(old)
            return old
        if found != new.suggestions.sha256:
            raise BackfillError(f"{self._store.full_path(entry.suggestions.path)} is neither the old nor the new file")
        letters = new.dead_letters or entry.dead_letters
        there = letters is not None and self._store.exists(letters.path)
        if letters and there and self._store.sha256(letters.path) != (new.dead_letters or letters).sha256:
            # The old dead letters are kept for the next retry.
            finished = replace(new, dead_letters=entry.dead_letters, errors=entry.errors)
        else:
            finished = new
            if letters and there and new.dead_letters is None:
                self._store.remove(letters.path)
        self._write(finished)
        return finished

    def complete_entries(self) -> Iterator[Entry]:
        """Yield the entries whose files exist; the other shards have to be classified again."""
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
    """Sums over committed shards."""

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
