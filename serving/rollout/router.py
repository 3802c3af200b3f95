"""The releases of one gateway process: brought up, chosen for a listing, let go of, while calls go on."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from serving.config import ServeOptions
from serving.decoding.pool import DecoderPool, DecoderThreads
from serving.inference.triton import InProcessEngine, TritonEngine
from serving.rollout.release import Changed, ServedRelease
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseAt, Routes
from vision.bundle import load_bundle
from vision.errors import ListingVisionError
from vision.images import Preprocessing
from vision.taxonomy import Taxonomy

__all__ = ["Routing", "only_route"]

_log = logging.getLogger(__name__)


def only_route(options: ServeOptions) -> Routes:
    """For a gateway that serves one bundle. Raises BundleError: it is not whole."""
    label = load_bundle(options.bundle).release
    release = ReleaseAt(label=label, bundle=options.bundle, model_name=options.model_name)
    return Routes(releases=(release,), stable=label)


class Routing:
    """Nothing is routed before the first `apply`."""

    def __init__(self, options: ServeOptions, *, changed: Changed) -> None:
        """Args: changed: told when a release has become well or unwell."""
        self._options = options
        self._changed = changed
        self._releases: dict[str, ServedRelease] = {}
        self._routes: Routes | None = None
        self._left_out: set[str] = set()
        """Labels of releases that it was told of and could not bring up."""
        self._decoders: dict[Preprocessing, DecoderPool | DecoderThreads] = {}
        """Releases of the same preprocessing share them."""
        self._num_users: Counter[Preprocessing] = Counter()
        self._applying = asyncio.Lock()

    @property
    def stable(self) -> ServedRelease:
        """Which answers what no canary does."""
        assert self._routes is not None
        return self._releases[self._routes.stable]

    def is_stable(self, release: ServedRelease) -> bool:
        return self._routes is not None and self._releases.get(self._routes.stable) is release

    def canary_for(self, listing_id: str) -> ServedRelease | None:
        """The canary, well or not, where the listing is in its share."""
        return self._taking(CANARY, listing_id)

    def shadow_for(self, listing_id: str) -> ServedRelease | None:
        """The shadow, where the listing is in its share."""
        return self._taking(SHADOW, listing_id)

    def _taking(self, purpose: str, listing_id: str) -> ServedRelease | None:
        assert self._routes is not None
        share = self._routes.shares.get(purpose)
        return self._releases.get(share.label) if share and share.takes(listing_id, purpose) else None

    @property
    def taxonomies(self) -> Sequence[Taxonomy]:
        """That answers may have been in, the stable release's first."""
        others = [release for release in self._releases.values() if release is not self.stable]
        return [release.bundle.taxonomy for release in (self.stable, *others)]

    def unwell(self) -> list[str]:
        """Labels of releases that were well and then were not, since they got their part, or that could not get it."""
        assert self._routes is not None
        return [label for label in self._routes.asked.values() if label in self._left_out or self._has_failed(label)]

    def _has_failed(self, label: str) -> bool:
        release = self._releases[label]
        return release.was_well and release.breaker.has_opened

    async def apply(self, routes: Routes) -> None:
        """Route so from now on; what is not loaded yet is brought up first, and calls go on meanwhile.

        The first time releases need not be well yet. Later those must be that are new or get a part. Others that cannot
        be brought up, since their bundle has gone, are left out: they keep no process from coming or from changing.
        What is let go of is closed when it returns, after its last call.

        Raises:
            ListingVisionError: a release that is needed cannot be brought up; nothing has changed.
        """
        async with self._applying:
            added: dict[str, ServedRelease] = {}
            left_out: set[str] = set()
            parts = set(routes.asked.values())
            before = set(self._routes.asked.values()) if self._routes else set()
            needed = {routes.stable}
            if self._routes:
                needed |= (parts - before) | (set(routes.labels) - self._releases.keys() - self._left_out)
            try:
                for release in routes.releases:
                    if release.label in self._releases:
                        continue
                    must = release.label in needed
                    try:
                        added[release.label] = await self._brought_up(release, well=must and self._routes is not None)
                    except (ListingVisionError, OSError) as error:
                        if must:
                            raise
                        _log.error("release %s is left out: %s", release.label, error)
                        left_out.add(release.label)
                for label in parts - before - added.keys() - left_out:
                    # It was not watched until now.
                    await self._releases[label].until_well()
            except BaseException:
                for begun in added.values():
                    await self._end(begun)
                raise
            gone = [self._releases.pop(label) for label in list(self._releases) if label not in routes.labels]
            self._releases |= added
            self._left_out = left_out
            self._routes = routes
            for label, served in self._releases.items():
                if label in parts:
                    served.watch()
                else:
                    served.rest()
            self._changed(self.stable)
            await asyncio.gather(*(self._end(served, when_idle=True) for served in gone))

    async def close(self) -> None:
        for release in self._releases.values():
            await self._end(release)

    async def _brought_up(self, release: ReleaseAt, *, well: bool) -> ServedRelease:
        """Args: well: whether it must be, or may become so."""
        bundle = await asyncio.to_thread(load_bundle, release.bundle)
        if bundle.release != release.label:
            raise ListingVisionError(f"{release.bundle} is {bundle.release} by now, not {release.label}")
        engine = (
            TritonEngine(
                self._options.triton,
                model_name=release.model_name,
                num_gateways=self._options.workers,
                may_decode=self._options.decode_in == "triton",
            )
            if self._options.triton
            else await asyncio.to_thread(InProcessEngine, bundle)
        )
        served = ServedRelease(
            release.label,
            bundle,
            engine,
            self._take_decoders(bundle.info.preprocessing),
            health_interval_s=self._options.health_interval_s,
            changed=self._changed,
        )
        try:
            if well:
                await served.until_well()
            await served.warm_up()
        except BaseException:
            await self._end(served)
            raise
        return served

    def _take_decoders(self, preprocessing: Preprocessing) -> DecoderPool | DecoderThreads:
        self._num_users[preprocessing] += 1
        if preprocessing not in self._decoders:
            kind = DecoderPool if self._options.isolate else DecoderThreads
            self._decoders[preprocessing] = kind(preprocessing, self._options.num_decoders)
        return self._decoders[preprocessing]

    async def _end(self, release: ServedRelease, *, when_idle: bool = False) -> None:
        await release.close(when_idle=when_idle)
        preprocessing = release.bundle.info.preprocessing
        self._num_users[preprocessing] -= 1
        if not self._num_users[preprocessing]:
            await self._decoders.pop(preprocessing).close()
