"""Which release serves which listing: a value that the supervisor sends to its gateway processes."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vision.errors import ListingVisionError

__all__ = ["ReleaseSpec", "TrafficShare", "TrafficSplit", "hash_bucket"]

CANARY, SHADOW = "canary", "shadow"


def hash_bucket(listing_id: str, salt: str) -> float:
    """Return a listing's bucket in [0, 1): the first 64 bits of SHA-256 of `salt:listing_id`, in UTF-8, as a fraction.

    The same in every process and after every restart; independent for different salts, so that who was in one
    experiment says nothing of who is in the next.
    """
    digest = hashlib.sha256(f"{salt}:{listing_id}".encode(errors="surrogatepass")).digest()
    # 53 bits are what a float holds; with more the largest would round up to 1.
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


@dataclass(frozen=True, kw_only=True)
class ReleaseSpec:
    """A bundle and its model name in Triton."""

    label: str
    """`Bundle.release`."""
    bundle: Path
    model_name: str
    """Name in Triton; never reused for another bundle."""


@dataclass(frozen=True, kw_only=True)
class TrafficShare:
    """A share of the listings for a release."""

    label: str
    share: float
    """In (0, 1]."""

    def contains(self, listing_id: str, purpose: str) -> bool:
        """Return whether a listing is in the share. A larger share of the same release holds all of a smaller one's
        listings.

        A listing without an id is in none: nobody could tell later what it was answered by.
        """
        return bool(listing_id) and hash_bucket(listing_id, f"{purpose}:{self.label}") < self.share


@dataclass(frozen=True, kw_only=True)
class TrafficSplit:
    """All loaded releases and their purposes.

    Raises ListingVisionError: a label that is not loaded, a share outside (0, 1], or one release for two purposes.
    """

    releases: tuple[ReleaseSpec, ...]
    stable: str
    """Label of the release for all listings that go to no canary."""
    canary: TrafficShare | None = None
    """Release whose results callers get for its share."""
    shadow: TrafficShare | None = None
    """Release whose results are recorded and never returned."""

    def __post_init__(self) -> None:
        for purpose, share in self.shares.items():
            if not 0 < share.share <= 1:
                raise ListingVisionError(f"{purpose} share {share.share:g} is outside (0, 1]; 0.05 is one in twenty")
        purpose_by_label: dict[str, str] = {}
        for purpose, label in self.active_labels.items():
            if label not in self.labels:
                raise ListingVisionError(f"{label} is not loaded; loaded: {', '.join(self.labels)}")
            if label in purpose_by_label:
                raise ListingVisionError(f"{label} cannot be {purpose_by_label[label]} and {purpose} at once")
            purpose_by_label[label] = purpose

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(release.label for release in self.releases)

    @property
    def shares(self) -> dict[str, TrafficShare]:
        """The canary and shadow shares that are set, by purpose."""
        return {purpose: share for purpose, share in ((CANARY, self.canary), (SHADOW, self.shadow)) if share}

    @property
    def active_labels(self) -> dict[str, str]:
        """Labels of the releases that get traffic, by purpose."""
        return {"stable": self.stable, **{purpose: share.label for purpose, share in self.shares.items()}}

    def with_share(self, purpose: str, share: TrafficShare | None) -> "TrafficSplit":
        """Return the split with another canary or shadow, or none. Raises ListingVisionError."""
        return replace(self, canary=share) if purpose == CANARY else replace(self, shadow=share)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "releases": [{**asdict(r), "bundle": str(r.bundle)} for r in self.releases]}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "TrafficSplit":
        return cls(
            releases=tuple(ReleaseSpec(**{**r, "bundle": Path(r["bundle"])}) for r in raw["releases"]),
            stable=raw["stable"],
            canary=TrafficShare(**raw["canary"]) if raw["canary"] else None,
            shadow=TrafficShare(**raw["shadow"]) if raw["shadow"] else None,
        )
