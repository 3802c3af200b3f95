"""Load the releases of one gateway process, choose one for each listing, and unload them while calls continue."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from serving.inference.engine import AsyncEngine
from serving.inference.shared_check import SharedCheck
from serving.rollout.release import Decoders, OnReleaseChange, ServedRelease
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseSpec, TrafficSplit
from vision.bundle import Bundle, check_beside, load_bundle
from vision.errors import ListingVisionError
from vision.images import Preprocessing
from vision.taxonomy import Taxonomy

__all__ = ["Router", "create_single_release_split"]

_log = logging.getLogger(__name__)


def create_single_release_split(bundle: Path, *, model_name: str, public_key: Path | None = None) -> TrafficSplit:
    """Return the split of a gateway that serves one bundle. Raises BundleError: as `load_bundle`."""
    label = load_bundle(bundle, public_key=public_key).release
    release = ReleaseSpec(label=label, bundle=bundle, model_name=model_name)
    return TrafficSplit(releases=(release,), stable=label)


class Router:
    """Nothing is routed before the first `apply`."""

    def __init__(
        self,
        *,
        create_engine: Callable[[Bundle, str], Awaitable[AsyncEngine]],
        create_decoders: Callable[[Preprocessing], Decoders],
        create_shared_check: Callable[[str], SharedCheck | None],
        health_interval_s: float,
        on_change: OnReleaseChange,
        public_key: Path | None = None,
    ) -> None:
        """Args:
        create_engine: from a bundle and its model name in Triton.
        create_decoders: shared by the releases with the same preprocessing.
        create_shared_check: from a model name in Triton; returns None where each process must check by itself.
        health_interval_s: between checks of a release by golden photos.
        on_change: called when the health or the circuit breaker of a release has changed.
        public_key: PEM file of the key that must have signed every bundle; None: none need be signed.
        """
        self._public_key = public_key
        self._create_engine = create_engine
        self._create_decoders = create_decoders
        self._create_shared_check = create_shared_check
        self._health_interval_s = health_interval_s
        self._on_change = on_change
        self._releases: dict[str, ServedRelease] = {}
        self._traffic_split: TrafficSplit | None = None
        self._failed_to_load: set[str] = set()
        """Labels of releases of the split that could not be loaded."""
        self._decoders: dict[Preprocessing, Decoders] = {}
        self._num_users: Counter[Preprocessing] = Counter()
        self._apply_lock = asyncio.Lock()

    @property
    def stable(self) -> ServedRelease:
        """The release for all listings that go to no canary."""
        assert self._traffic_split is not None
        return self._releases[self._traffic_split.stable]

    @property
    def releases(self) -> Mapping[str, ServedRelease]:
        """Loaded releases by label."""
        return self._releases

    def is_stable(self, release: ServedRelease) -> bool:
        return self._traffic_split is not None and self._releases.get(self._traffic_split.stable) is release

    def select_canary(self, listing_id: str) -> ServedRelease | None:
        """Return the canary, healthy or not, if the listing is in its share."""
        return self._select(CANARY, listing_id)

    def select_shadow(self, listing_id: str) -> ServedRelease | None:
        """Return the shadow if the listing is in its share."""
        return self._select(SHADOW, listing_id)

    def _select(self, purpose: str, listing_id: str) -> ServedRelease | None:
        assert self._traffic_split is not None
        share = self._traffic_split.shares.get(purpose)
        return self._releases.get(share.label) if share and share.contains(listing_id, purpose) else None

    @property
    def taxonomies(self) -> Sequence[Taxonomy]:
        """Taxonomies of the loaded releases, the stable one's first."""
        others = [release for release in self._releases.values() if release is not self.stable]
        return [release.bundle.taxonomy for release in (self.stable, *others)]

    def list_unhealthy(self) -> list[str]:
        """Return the labels of active releases that became unhealthy, or could not be loaded."""
        assert self._traffic_split is not None
        return [
            label
            for label in self._traffic_split.active_labels.values()
            if label in self._failed_to_load or self._has_failed(label)
        ]

    def _has_failed(self, label: str) -> bool:
        release = self._releases[label]
        return release.was_healthy and release.breaker.has_opened

    async def apply(self, traffic_split: TrafficSplit) -> None:
        """Switch to a traffic split; missing releases are loaded first, while calls continue.

        At the first call releases need not be healthy yet. Later, releases that are new or newly active must be. Other
        releases that cannot be loaded, since their bundle was deleted, are skipped. Releases that are no longer in the
        split are closed after their last call, before this returns.

        Raises:
            ListingVisionError: a required release cannot be loaded; nothing has changed.
        """
        async with self._apply_lock:
            added: dict[str, ServedRelease] = {}
            failed: set[str] = set()
            active = set(traffic_split.active_labels.values())
            before = set(self._traffic_split.active_labels.values()) if self._traffic_split else set()
            needed = {traffic_split.stable}
            if self._traffic_split:
                needed |= (active - before) | (set(traffic_split.labels) - self._releases.keys() - self._failed_to_load)
            try:
                for release in traffic_split.releases:
                    if release.label in self._releases:
                        continue
                    is_required = release.label in needed
                    try:
                        added[release.label] = await self._start_release(
                            release,
                            beside=[*self._releases.values(), *added.values()],
                            must_be_healthy=is_required and self._traffic_split is not None,
                        )
                    except (ListingVisionError, OSError) as error:
                        if is_required:
                            raise
                        _log.error("release %s is skipped: %s", release.label, error)
                        failed.add(release.label)
                for label in active - before - added.keys() - failed:
                    # Its health was not monitored until now.
                    await self._releases[label].wait_until_healthy()
            except BaseException:
                for begun in added.values():
                    await self._close_release(begun)
                raise
            gone = [self._releases.pop(label) for label in list(self._releases) if label not in traffic_split.labels]
            self._releases |= added
            self._failed_to_load = failed
            self._traffic_split = traffic_split
            for label, served in self._releases.items():
                if label in active:
                    served.watch()
                else:
                    served.stop_watching()
            self._on_change(self.stable)
            await asyncio.gather(*(self._close_release(served, when_idle=True) for served in gone))

    async def close(self) -> None:
        for release in self._releases.values():
            await self._close_release(release)

    async def _start_release(
        self, release: ReleaseSpec, *, beside: Sequence[ServedRelease], must_be_healthy: bool
    ) -> ServedRelease:
        bundle = await asyncio.to_thread(load_bundle, release.bundle, public_key=self._public_key)
        if bundle.release != release.label:
            raise ListingVisionError(f"{release.bundle} now holds {bundle.release}, not {release.label}")
        for other in beside:
            check_beside(bundle, other.bundle)
        shared_check = self._create_shared_check(release.model_name)
        engine = await self._create_engine(bundle, release.model_name)
        served = ServedRelease(
            release.label,
            bundle,
            engine,
            self._acquire_decoders(bundle.info.preprocessing),
            health_interval_s=self._health_interval_s,
            shared_check=shared_check,
            on_change=self._on_change,
        )
        try:
            if must_be_healthy:
                await served.wait_until_healthy()
            await served.warm_up()
        except BaseException:
            await self._close_release(served)
            raise
        return served

    def _acquire_decoders(self, preprocessing: Preprocessing) -> Decoders:
        self._num_users[preprocessing] += 1
        if preprocessing not in self._decoders:
            self._decoders[preprocessing] = self._create_decoders(preprocessing)
        return self._decoders[preprocessing]

    async def _close_release(self, release: ServedRelease, *, when_idle: bool = False) -> None:
        await release.close(when_idle=when_idle)
        preprocessing = release.bundle.info.preprocessing
        self._num_users[preprocessing] -= 1
        if not self._num_users[preprocessing]:
            await self._decoders.pop(preprocessing).close()
