"""The verb `outcomes`: delete what `serve --outcomes` has stored."""

from pathlib import Path
from typing import Annotated

import typer

from vision.errors import ListingVisionError
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

__all__ = ["outcomes_app"]

outcomes_app = create_cli_app("Delete stored suggestions and outcomes.")

_Url = Annotated[str, typer.Argument(help="Folder or fsspec URL that `serve --outcomes` writes to.")]


@outcomes_app.command()
def forget(
    outcomes: _Url,
    listing_ids: Annotated[list[str] | None, typer.Argument(help="Ids of the listings.")] = None,
    ids_file: Annotated[Path | None, typer.Option(help="File of further ids, one a line.")] = None,
) -> None:
    """Delete all suggestions and outcomes of listings, in the stored files too.

    Example: listing-vision outcomes forget outcomes listing-17 listing-18
    """
    from serving.outcomes.retention import forget as forget_rows
    from serving.storage import Store

    ids = set(listing_ids or ())
    if ids_file:
        ids |= {line.strip() for line in _read_lines(ids_file) if line.strip()}
    if not ids:
        raise typer.BadParameter("give ids of listings, or --ids-file")
    deleted = forget_rows(Store(outcomes), ids)
    typer.echo(
        ", ".join(f"{count} {table}" for table, count in deleted.items())
        + f" of {format_count(len(ids), 'listing')} deleted"
    )
    typer.echo("a running gateway writes rows within 10 s; run this again to delete what it still held")


@outcomes_app.command()
def expire(
    outcomes: _Url, days: Annotated[float, typer.Option(min=1, help="Days to keep, counted from today (UTC).")]
) -> None:
    """Delete the files of all days that are older.

    Example: listing-vision outcomes expire outcomes --days 400
    """
    from serving.outcomes.retention import expire as expire_files
    from serving.storage import Store

    typer.echo(f"{format_count(expire_files(Store(outcomes), days=days), 'file')} deleted")


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ListingVisionError(f"--ids-file {path}: {error.strerror}") from error
