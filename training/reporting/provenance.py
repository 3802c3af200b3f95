"""What a report says about the data that it was made from, and when."""

import datetime

from vision.manifest import Manifest

__all__ = ["describe_manifest"]


def describe_manifest(manifest: str) -> dict[str, str]:
    """The date in UTC, the manifest's path or URL, and the sha256 of its values.

    Raises:
        ManifestError: as `Manifest.load`.
    """
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "manifest": manifest,
        "manifest_sha256": Manifest.load(manifest).compute_digest(),
    }
