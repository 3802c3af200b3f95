"""The file from which a service that starts again knows its releases."""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.rollout.traffic_split import TrafficShare, TrafficSplit
from vision.errors import ListingVisionError
from vision.runtime.files import write_atomically

__all__ = ["ReleaseState", "StateFolder"]

_NAME = "releases.json"


@dataclass(frozen=True, kw_only=True)
class ReleaseState:
    """What operators and health checks have made of the releases that a service was started with."""

    initial: TrafficSplit
    """The split of the options alone."""
    traffic_split: TrafficSplit
    sources: Mapping[str, Path]
    """Folders that the operator gave, by label."""
    previous: str | None = None
    """Label of the stable release before the last promotion."""
    removal_reasons: Mapping[str, str] = field(default_factory=dict)
    """Reasons for which canaries were removed, by label."""

    @classmethod
    def start(cls, initial: TrafficSplit) -> "ReleaseState":
        """Return the state of a service that has only just its options."""
        sources = {release.label: release.bundle for release in initial.releases}
        return cls(initial=initial, traffic_split=initial, sources=sources)

    def follows(self, initial: TrafficSplit) -> bool:
        """Return whether options ask for the same releases and shares as those that this state began with."""
        return _list_choices(self.initial) == _list_choices(initial)

    def continue_from(self, initial: TrafficSplit) -> "ReleaseState":
        """Return the state with the bundles of the options where they lie now."""
        given = {release.label: release for release in initial.releases}
        releases = tuple(given.get(release.label, release) for release in self.traffic_split.releases)
        sources = {**self.sources, **{label: release.bundle for label, release in given.items()}}
        return replace(
            self,
            initial=initial,
            traffic_split=replace(self.traffic_split, releases=releases),
            sources={release.label: sources[release.label] for release in releases},
        )

    def to_json(self) -> str:
        raw = {
            "initial": self.initial.to_dict(),
            "traffic_split": self.traffic_split.to_dict(),
            "sources": {label: str(folder) for label, folder in self.sources.items()},
            "previous": self.previous,
            "removal_reasons": dict(self.removal_reasons),
        }
        return json.dumps(raw, indent=1)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ReleaseState":
        return cls(
            initial=TrafficSplit.from_dict(raw["initial"]),
            traffic_split=TrafficSplit.from_dict(raw["traffic_split"]),
            sources={label: Path(folder) for label, folder in raw["sources"].items()},
            previous=raw["previous"],
            removal_reasons=raw["removal_reasons"],
        )


def _list_choices(split: TrafficSplit) -> tuple[str, TrafficShare | None, TrafficShare | None]:
    return split.stable, split.canary, split.shadow


class StateFolder:
    """A folder of one service, which outlasts it: the state of its releases, and copies of those that were loaded."""

    def __init__(self, path: Path) -> None:
        """Raises ListingVisionError: it cannot be written, or another service uses it."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ListingVisionError(f"--state-folder {path} cannot be used: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ListingVisionError(
                f"--state-folder {path} is in use by another `serve`; give each its own"
            ) from error

    @property
    def releases(self) -> Path:
        """Folder of the copies of loaded bundles."""
        return self.path / "releases"

    def read(self) -> ReleaseState | None:
        """Return the state that was written last; None if there is none.

        Raises:
            ListingVisionError: it cannot be read.
        """
        try:
            return ReleaseState.from_dict(json.loads((self.path / _NAME).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ListingVisionError(
                f"{self.path / _NAME} cannot be read ({error!r}); remove it to serve the bundle that is given"
            ) from error

    def write(self, state: ReleaseState) -> None:
        """Raises ListingVisionError: it cannot be written."""
        try:
            write_atomically(self.path / _NAME, state.to_json())
        except OSError as error:
            raise ListingVisionError(
                f"{self.path / _NAME} cannot be written, so a restart would have other releases than there are now: "
                f"{error}"
            ) from error

    def remove_copies_except(self, state: ReleaseState) -> None:
        """Remove copies of bundles that no loaded release needs: an unload or a kill has left them."""
        needed = {release.bundle for release in state.traffic_split.releases}
        for copy in self.releases.iterdir() if self.releases.is_dir() else ():
            if copy not in needed:
                shutil.rmtree(copy)

    def close(self) -> None:
        """Let another service use the folder."""
        os.close(self._lock)
