"""Find the taxonomies of all loaded releases by version."""

import json
import logging
from pathlib import Path

from serving.rollout.traffic_split import TrafficSplit
from vision.errors import TaxonomyError
from vision.runtime.files import write_atomically
from vision.taxonomy import Taxonomy

__all__ = ["Taxonomies", "write_traffic_split"]

_log = logging.getLogger(__name__)


def write_traffic_split(folder: Path, traffic_split: TrafficSplit) -> None:
    """Write the loaded releases to `folder`, atomically, for a `Taxonomies` of the same folder."""
    write_atomically(_traffic_split_path(folder), json.dumps(traffic_split.to_dict()))


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
            traffic_split = TrafficSplit.from_dict(json.loads(_traffic_split_path(self._folder).read_text()))
            for release in traffic_split.releases:
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


def _traffic_split_path(folder: Path) -> Path:
    return folder / "traffic_split.json"
