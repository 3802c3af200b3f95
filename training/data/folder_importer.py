"""A folder of photos turned into a listing manifest and a taxonomy; whatever is left out is named."""

import fnmatch
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from training.data.importers import build_taxonomy, compute_version
from training.errors import RunStopped
from vision.errors import ManifestError, PhotoNotAnImage
from vision.images import detect_format
from vision.manifest import Manifest
from vision.runtime.wording import format_count
from vision.taxonomy import PATH_SEPARATOR, Taxonomy, create_slug

__all__ = ["SPLIT_FOLDERS", "ImportedFolder", "LeftOut", "import_folder"]

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "calibrate": "calibrate",
    "calibration": "calibrate",
    "test": "test",
    "testing": "test",
}
"""Folder name in lower case to the split of the photos in it."""

_PREFIX_BYTES = 4096
"""What Pillow shows a format to recognise a file by."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files or folders that are not in the manifest, for one reason."""

    reason: str
    count: int
    example: str
    """Path of the first one, relative to the folder."""
    endings: tuple[tuple[str, int], ...] = ()
    """Endings with their counts, the most frequent first; of files that are no photo."""

    def __str__(self) -> str:
        endings = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in self.endings)
        return f"{self.reason}: {self.count}{f' ({endings})' if endings else ''}, such as {self.example}"


@dataclass(frozen=True, kw_only=True)
class ImportedFolder:
    manifest: Manifest
    """A listing per photo, absolute paths; `split` is empty where the folder has no splits."""
    taxonomy: Taxonomy
    left_out: tuple[LeftOut, ...]


def import_folder(
    source: Path, *, skip: Sequence[str] = (), language: str = "en", stop: Callable[[], bool] = lambda: False
) -> ImportedFolder:
    """Import `split/class/name.jpg` or `class/name.jpg`; a listing per photo, brands not known.

    Split folders are `SPLIT_FOLDERS`. Folders inside a class are its subcategories, and photos beside them are labelled
    with the class alone. Files are recognised by their first bytes. Names that begin with a dot and `__MACOSX` are left
    out, links are followed.

    Args:
        source: the folder, or one that holds nothing else, as an archive may.
        skip: paths or patterns (`train/unsorted`, `*/unsorted`), relative to the folder, to leave out.
        language: BCP 47 tag of the folders' names.
        stop: whether to give up; looked at before every file.

    Raises:
        RunStopped: `stop` said so.
        ManifestError: no such folder, no photo in it, a whole folder that would be left out and is not in `skip`, a
            name that is not in UTF-8, or names that would share an id.
    """
    if not source.is_dir():
        raise ManifestError(f"{source} is not a folder; give one with split/class/name.jpg or class/name.jpg")
    root = _find_root(source)
    scan = _Scan(root, skip, stop)
    scan.visit(root, PurePosixPath(), frozenset())
    has_splits = _detect_splits(root, scan)
    labelled = _label_photos(scan, has_splits=has_splits)
    if scan.problems:
        raise ManifestError(
            f"{root}: these would be left out; rename or move them, or leave them out with --skip:", scan.problems
        )
    if not labelled:
        raise ManifestError(f"{source} holds no photo as split/class/name.jpg or class/name.jpg")
    paths = sorted({path for _, path, _ in labelled})
    taxonomy = build_taxonomy(
        compute_version(f"folder-{create_slug(source.resolve().name)}", paths), paths, language=language
    )
    rows = [
        {
            "listing_id": str(photo),
            "photo": str((root / photo).resolve()),
            "category": PATH_SEPARATOR.join(path),
            "split": split,
        }
        for split, path, photo in labelled
    ]
    return ImportedFolder(
        manifest=Manifest.from_rows(rows, str(root)), taxonomy=taxonomy, left_out=scan.summarize_left_out()
    )


@dataclass(eq=False)
class _Scan:
    """The photos of a folder, and what is left out."""

    root: Path
    skip: Sequence[str]
    stop: Callable[[], bool]
    photos: list[PurePosixPath] = field(default_factory=list)
    folders: list[PurePosixPath] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Whole folders that would be left out."""
    left_out: dict[str, tuple[str, Counter[str]]] = field(default_factory=dict)
    """Reason to the first path and the number of each ending."""

    def leave_out(self, reason: str, path: PurePosixPath) -> None:
        _, endings = self.left_out.setdefault(reason, (str(path), Counter()))
        endings[path.suffix.lower() if reason == _NO_PHOTO else ""] += 1

    def summarize_left_out(self) -> tuple[LeftOut, ...]:
        return tuple(
            LeftOut(
                reason=reason,
                count=endings.total(),
                example=example,
                endings=tuple(endings.most_common()) if reason == _NO_PHOTO else (),
            )
            for reason, (example, endings) in self.left_out.items()
        )

    def visit(self, folder: Path, path: PurePosixPath, above: frozenset[tuple[int, int]]) -> None:
        """Take the photos below a folder.

        Args:
            above: device and inode of the folders above, so that links do not lead in circles.
        """
        status = folder.stat()
        here = above | {(status.st_dev, status.st_ino)}
        num_files, num_before, num_problems = 0, len(self.photos), len(self.problems)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if self.stop():
                raise RunStopped(f"stopped before all of {self.root} was looked at; repeat the command to begin again")
            child = path / entry.name
            if not _is_utf8(entry.name):
                shown = os.fsencode(str(child)).decode("utf-8", "replace")
                self.problems.append(f"{shown}: its name is not in UTF-8; rename it, for example with convmv")
            elif _is_hidden(entry.name):
                self.leave_out("hidden names", child)
            elif any(fnmatch.fnmatchcase(str(child), pattern.rstrip("/")) for pattern in self.skip):
                self.leave_out("names that --skip leaves out", child)
            elif entry.is_dir():
                target = entry.stat()
                if (target.st_dev, target.st_ino) in here:
                    self.leave_out("links that lead back to a folder above", child)
                else:
                    self.folders.append(child)
                    self.visit(Path(entry.path), child, here)
            elif not entry.is_file():
                self.leave_out("links to nothing and special files", child)
            elif _is_photo(entry.path):
                self.photos.append(child)
            else:
                num_files += 1
                self.leave_out(_NO_PHOTO, child)
        if len(self.photos) > num_before or path == PurePosixPath() or len(self.problems) > num_problems:
            return
        if num_files:
            self.problems.append(f"{path}: {format_count(num_files, 'file')}, none of them a photo")
        elif not any(path in folder.parents for folder in self.folders):
            self.leave_out("empty folders", path)


_NO_PHOTO = "files that are no photo"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_utf8(name: str) -> bool:
    return os.fsencode(name).decode("utf-8", "replace") == name


def _is_photo(path: str) -> bool:
    """Whether a file begins as one of the formats that the decoder reads."""
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX_BYTES)
    try:
        detect_format(prefix)
    except PhotoNotAnImage:
        return False
    return True


def _list_visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not _is_hidden(path.name)] if folder.is_dir() else []


def _find_root(source: Path) -> Path:
    """The folder of the splits: an archive often holds them in one more folder."""
    while len(visible := _list_visible(source)) == 1 and visible[0].name.casefold() not in SPLIT_FOLDERS:
        if not any(SPLIT_FOLDERS.get(inner.name.casefold()) == "train" for inner in _list_visible(visible[0])):
            break
        source = visible[0]
    return source


def _detect_splits(root: Path, scan: _Scan) -> bool:
    """Whether the folders below `root` are splits, not classes.

    Raises:
        ManifestError: some are and some are not, or the splits are inside the classes.
    """
    top = [folder.name for folder in scan.folders if len(folder.parts) == 1]
    named = [name for name in top if name.casefold() in SPLIT_FOLDERS]
    splits = {SPLIT_FOLDERS[name.casefold()] for name in named}
    if "train" in splits or (named and len(named) == len(top)):
        return True
    if named:
        others = ", ".join(name for name in top if name not in named)
        raise ManifestError(
            f"{root}: {', '.join(named)} names a split, and {others} does not; give split/class/name.jpg with a folder "
            "train, or class/name.jpg, and leave other folders out with --skip"
        )
    inner: dict[str, set[str]] = {}
    for folder in scan.folders:
        if len(folder.parts) == 2:
            inner.setdefault(folder.parts[0], set()).add(SPLIT_FOLDERS.get(folder.name.casefold(), ""))
    for name, found in inner.items():
        if "train" in found and found & {"val", "test"}:
            raise ManifestError(f"{root}: the splits are inside the class {name}; give split/class/name.jpg instead")
    return False


def _label_photos(scan: _Scan, *, has_splits: bool) -> list[tuple[str, tuple[str, ...], PurePosixPath]]:
    """Split, category path and relative path of each photo that is in a class."""
    labelled = []
    num_photos: Counter[str] = Counter()
    num_taken: Counter[str] = Counter()
    for photo in scan.photos:
        top, *inner = photo.parts
        num_photos[top] += bool(inner)
        split = SPLIT_FOLDERS.get(top.casefold()) if has_splits else ""
        classes = photo.parts[1 if has_splits else 0 : -1]
        if split is None or not classes:
            scan.leave_out("photos in no class folder", photo)
            continue
        num_taken[top] += 1
        labelled.append((split, _read_path(classes), photo))
    for top, count in num_photos.items():
        if count and not num_taken[top]:
            why = "none in a class folder" if top.casefold() in SPLIT_FOLDERS else "in no split"
            scan.problems.append(f"{top}: {format_count(count, 'photo')}, {why}")
    return labelled


def _read_path(folders: Sequence[str]) -> tuple[str, ...]:
    """Names from root to class; a folder `Women > Shoes` is two."""
    parts = (part.strip() for folder in folders for part in folder.split(">"))
    return tuple(unicodedata.normalize("NFC", part) for part in parts)
