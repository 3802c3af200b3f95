"""Many photos, each a listing of its own, classified into a CSV."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vision.errors import ListingVisionError
from vision.runtime.files import replace_file
from vision.runtime.progress import Progress

if TYPE_CHECKING:  # gRPC is not installed where models are only trained
    from listing_vision_client.results import ListingSuggestion, NotPrefilled

__all__ = ["find_photos", "write_table"]

_COLUMNS = (
    *("photo", "category", "probability", "action", "reason"),
    *("brand", "brand_probability", "brand_action", "brand_reason", "error"),
)


def find_photos(given: Iterable[Path]) -> list[Path]:
    """The given files, and in place of a folder all files below it, by name; hidden ones are left out.

    What is no photo is not left out: its row says so.

    Raises:
        ListingVisionError: a folder without a file, or paths that do not exist; names all of these.
    """
    given = list(given)
    if missing := [str(path) for path in given if not path.exists()]:
        raise ListingVisionError(
            f"no file or folder at {', '.join(missing)}; check the spelling, and leave a pattern such as *.jpg without "
            "quotes, so that the shell fills in the names"
        )
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            inner
            for inner in path.rglob("*")
            if inner.is_file() and not any(part.startswith(".") for part in inner.relative_to(path).parts)
        )
        if not inside:
            raise ListingVisionError(f"{path} has no file")
        found += inside
    return found


def write_table(
    photos: Sequence[Path], output: Path, classify: Callable[[Sequence[bytes]], "ListingSuggestion"]
) -> tuple[int, int]:
    """Classify each photo as a listing of its own, and write a row for each; return how many there are and how many of
    them could not be used, which the column `error` explains.

    Args:
        photos: files.
        output: CSV; written whole or not at all.
        classify: from the photos of a listing to its suggestion; what it raises as a ListingVisionError is of that
            listing alone.
    """
    num_errors = 0
    with (
        replace_file(output) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
        Progress("classifying", len(photos)) as progress,
    ):
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for row in _classify_each(photos, classify):
            num_errors += "error" in row
            writer.writerow(row)
            progress.advance()
    return len(photos), num_errors


def _classify_each(
    photos: Sequence[Path], classify: Callable[[Sequence[bytes]], "ListingSuggestion"]
) -> Iterator[dict[str, object]]:
    for path in photos:
        try:
            suggestion = classify([path.read_bytes()])
        except (OSError, ListingVisionError) as error:
            yield {"photo": path, "error": str(error).replace("\n", " ")}
            continue
        deepest, brand = suggestion.category_path[-1], suggestion.brand
        yield {
            "photo": path,
            "category": " > ".join(step.name for step in suggestion.category_path),
            "probability": f"{deepest.probability:.4f}",
            "action": deepest.action.name.lower(),
            "reason": _name_reason(deepest.not_prefilled),
            "brand": brand.name if brand else "",
            "brand_probability": f"{brand.probability:.4f}" if brand and brand.probability is not None else "",
            "brand_action": brand.action.name.lower() if brand else "",
            "brand_reason": _name_reason(brand.not_prefilled) if brand else "",
        }


def _name_reason(not_prefilled: "NotPrefilled | None") -> str:
    return not_prefilled.reason.name.lower() if not_prefilled else ""
