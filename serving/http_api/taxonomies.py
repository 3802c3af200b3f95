"""The taxonomies of all releases that are loaded, found by version."""

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
    """Write down what is loaded, for a `Taxonomies` of the same folder; whole or not at all."""
    write_atomically(_traffic_split_path(folder), json.dumps(traffic_split.to_dict()))


class Taxonomies:
    """Releases come and go; what was read once stays known."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: the supervisor's, in which it notes what is loaded."""
        self._folder = folder
        self._known: dict[str, Taxonomy] = {}
        self._failed_releases: set[str] = set()

    def find(self, version: str) -> Taxonomy | None:
        """That version's; None: no release that is loaded has it. Reads files."""
        if version not in self._known:
            traffic_split = TrafficSplit.from_dict(json.loads(_traffic_split_path(self._folder).read_text()))
            for release in traffic_split.releases:
                try:
                    # Gateway processes have checked its hash.
                    taxonomy = Taxonomy.load(release.bundle / "taxonomy.json")
                except (OSError, ValueError, TaxonomyError) as error:
                    if release.label not in self._failed_releases:
                        _log.error("the taxonomy of %s is left out: %s", release.label, error)
                    self._failed_releases.add(release.label)
                    continue
                self._known[taxonomy.version] = taxonomy
        return self._known.get(version)


def _traffic_split_path(folder: Path) -> Path:
    return folder / "traffic_split.json"
