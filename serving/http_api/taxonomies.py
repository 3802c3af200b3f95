"""The taxonomies of all releases that are loaded, found by version."""

import json
import logging
from pathlib import Path

from serving.rollout.traffic_split import Routes
from vision.errors import TaxonomyError
from vision.runtime.files import write_atomically
from vision.taxonomy import Taxonomy

__all__ = ["Taxonomies", "note_routes"]

_log = logging.getLogger(__name__)


def note_routes(folder: Path, routes: Routes) -> None:
    """Write down what is loaded, for a `Taxonomies` of the same folder; whole or not at all."""
    write_atomically(_path(folder), json.dumps(routes.to_dict()))


class Taxonomies:
    """Releases come and go; what was read once stays known."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: the supervisor's, in which it notes what is loaded."""
        self._folder = folder
        self._known: dict[str, Taxonomy] = {}
        self._left_out: set[str] = set()

    def find(self, version: str) -> Taxonomy | None:
        """That version's; None: no release that is loaded has it. Reads files."""
        if version not in self._known:
            routes = Routes.from_dict(json.loads(_path(self._folder).read_text()))
            for release in routes.releases:
                try:
                    # Gateway processes have checked its hash.
                    taxonomy = Taxonomy.load(release.bundle / "taxonomy.json")
                except (OSError, ValueError, TaxonomyError) as error:
                    if release.label not in self._left_out:
                        _log.error("the taxonomy of %s is left out: %s", release.label, error)
                    self._left_out.add(release.label)
                    continue
                self._known[taxonomy.version] = taxonomy
        return self._known.get(version)


def _path(folder: Path) -> Path:
    return folder / "routes.json"
