"""The releases of one gateway process: brought up, chosen for a listing, let go of, while calls go on."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from serving.config import ServeOptions
from serving.decoding.pool import DecoderPool, DecoderThreads
from serving.inference.in_process import InProcessEngine
from serving.inference.triton import TritonEngine
from serving.rollout.release import OnReleaseChange, ServedRelease
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseSpec, TrafficSplit
from vision.bundle import load_bundle
from vision.errors import ListingVisionError
from vision.images import Preprocessing
from vision.taxonomy import Taxonomy

__all__ = ["Router", "create_single_release_split"]

_log = logging.getLogger(__name__)


def create_single_release_split(options: ServeOptions) -> TrafficSplit:
    """For a gateway that serves one bundle. Raises BundleError: it is not whole."""
    label = load_bundle(options.bundle).release
    release = ReleaseSpec(label=label, bundle=options.bundle, model_name=options.model_name)
    return TrafficSplit(releases=(release,), stable=label)


class Router:
    """Nothing is routed before the first `apply`."""

    def __init__(self, options: ServeOptions, *, on_change: OnReleaseChange) -> None:
        """Args: on_change: called when a release has become well or unwell."""
        self._options = options
        self._on_change = on_change
        self._releases: dict[str, ServedRelease] = {}
        self._traffic_split: TrafficSplit | None = None
        self._failed_to_load: set[str] = set()
        """Labels of releases that it was told of and could not bring up."""
        self._decoders: dict[Preprocessing, DecoderPool | DecoderThreads] = {}
        """Releases of the same preprocessing share them."""
        self._num_users: Counter[Preprocessing] = Counter()
        self._apply_lock = asyncio.Lock()

    @property
    def stable(self) -> ServedRelease:
        """Which answers what no canary does."""
        assert self._traffic_split is not None
        return self._releases[self._traffic_split.stable]

    def is_stable(self, release: ServedRelease) -> bool:
        return self._traffic_split is not None and self._releases.get(self._traffic_split.stable) is release

    def select_canary(self, listing_id: str) -> ServedRelease | None:
        """The canary, well or not, where the listing is in its share."""
        return self._select(CANARY, listing_id)

    def select_shadow(self, listing_id: str) -> ServedRelease | None:
        """The shadow, where the listing is in its share."""
        return self._select(SHADOW, listing_id)

    def _select(self, purpose: str, listing_id: str) -> ServedRelease | None:
        assert self._traffic_split is not None
        share = self._traffic_split.shares.get(purpose)
        return self._releases.get(share.label) if share and share.contains(listing_id, purpose) else None

    @property
    def taxonomies(self) -> Sequence[Taxonomy]:
        """That answers may have been in, the stable release's first."""
        others = [release for release in self._releases.values() if release is not self.stable]
        return [release.bundle.taxonomy for release in (self.stable, *others)]

    def list_unhealthy(self) -> list[str]:
        """Labels of releases that were well and then were not, since they got their part, or that could not get it."""
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
        """Route so from now on; what is not loaded yet is brought up first, and calls go on meanwhile.

        The first time releases need not be well yet. Later those must be that are new or get a part. Others that cannot
        be brought up, since their bundle has gone, are left out: they keep no process from coming or from changing.
        What is let go of is closed when it returns, after its last call.

        Raises:
            ListingVisionError: a release that is needed cannot be brought up; nothing has changed.
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
                            release, must_be_healthy=is_required and self._traffic_split is not None
                        )
                    except (ListingVisionError, OSError) as error:
                        if is_required:
                            raise
                        _log.error("release %s is left out: %s", release.label, error)
                        failed.add(release.label)
                for label in active - before - added.keys() - failed:
                    # It was not watched until now.
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

    async def _start_release(self, release: ReleaseSpec, *, must_be_healthy: bool) -> ServedRelease:
        """Args: well: whether it must be, or may become so."""
        bundle = await asyncio.to_thread(load_bundle, release.bundle)
        if bundle.release != release.label:
            raise ListingVisionError(f"{release.bundle} is {bundle.release} by now, not {release.label}")
        engine = (
            TritonEngine(
                self._options.triton,
                model_name=release.model_name,
                num_gateways=self._options.workers,
                allow_decoding=self._options.decode_in == "triton",
            )
            if self._options.triton
            else await asyncio.to_thread(InProcessEngine, bundle)
        )
        served = ServedRelease(
            release.label,
            bundle,
            engine,
            self._acquire_decoders(bundle.info.preprocessing),
            health_interval_s=self._options.health_interval_s,
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

    def _acquire_decoders(self, preprocessing: Preprocessing) -> DecoderPool | DecoderThreads:
        self._num_users[preprocessing] += 1
        if preprocessing not in self._decoders:
            kind = DecoderPool if self._options.isolate else DecoderThreads
            self._decoders[preprocessing] = kind(preprocessing, self._options.num_decoders)
        return self._decoders[preprocessing]

    async def _close_release(self, release: ServedRelease, *, when_idle: bool = False) -> None:
        await release.close(when_idle=when_idle)
        preprocessing = release.bundle.info.preprocessing
        self._num_users[preprocessing] -= 1
        if not self._num_users[preprocessing]:
            await self._decoders.pop(preprocessing).close()
