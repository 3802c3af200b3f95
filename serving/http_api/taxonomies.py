"""Find the taxonomies of all loaded releases by version."""

import logging
from pathlib import Path

from serving.rollout.routes_file import read_traffic_split
from vision.errors import TaxonomyError
from vision.taxonomy import Taxonomy

__all__ = ["Taxonomies"]

_log = logging.getLogger(__name__)


class Taxonomies:
    """A taxonomy that was read once stays known after its release is unloaded."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: the supervisor's, to which it writes the traffic split."""
        self._folder = folder
        self._known: dict[str, Taxonomy] = {}
        self._failed_releases: set[str] = set()

    def find(self, version: str) -> Taxonomy | None:
        """Return the taxonomy of a version; None if no loaded release has it. Reads files."""
        if version not in self._known:
            for release in read_traffic_split(self._folder).releases:
                try:
                    # The gateway processes have checked its hash.
                    taxonomy = Taxonomy.load(release.bundle / "taxonomy.json")
                except (OSError, ValueError, TaxonomyError) as error:
                    if release.label not in self._failed_releases:
                        _log.error("the taxonomy of release %s is skipped: %s", release.label, error)
                    self._failed_releases.add(release.label)
                    continue
                self._known[taxonomy.version] = taxonomy
        return self._known.get(version)
