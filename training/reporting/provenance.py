"""What a report says about the data that it was made from, and when."""

import datetime

from vision.manifest import Manifest

__all__ = ["describe_manifest", "format_time"]


def format_time(seconds: float | None = None) -> str:
    """A time in UTC, to the minute.

    Args:
        seconds: since 1970; None: now.
    """
    at = (
        datetime.datetime.now(datetime.UTC)
        if seconds is None
        else datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    )
    return at.strftime("%Y-%m-%d %H:%M UTC")


def describe_manifest(manifest: str) -> dict[str, str]:
    """The date in UTC, the manifest's path or URL, and the sha256 of its values.

    Raises:
        ManifestError: as `Manifest.load`.
    """
    return {
        "date": format_time(),
        "manifest": manifest,
        "manifest_sha256": Manifest.load(manifest).compute_digest(),
    }
