"""The releases of a running service: loaded beside each other, promoted, tried on a share of listings, let go of."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseAt, Routes, Share
from serving.triton.repository import MODEL_NAME
from vision.bundle import load_bundle
from vision.errors import ListingVisionError

if TYPE_CHECKING:
    from serving.triton.watchdog import WatchedTriton

__all__ = ["Releases"]

_log = logging.getLogger(__name__)

Route = Callable[[Routes], Awaitable[None]]
"""Has all gateway processes route so. Raises ListingVisionError: they do not, and route as before."""


class Releases:
    """Its public coroutines are an operator's commands; one is carried out after another."""

    def __init__(
        self, routes: Routes, route: Route, *, triton: "WatchedTriton | None", is_loadable: bool, records: bool
    ) -> None:
        """Args:
        routes: as the service was started.
        route: how they are changed.
        triton: of this service; None: gateway processes have models themselves, or ask somebody else's Triton.
        is_loadable: whether it is no Triton of somebody else.
        records: whether answers of shadows are kept.
        """
        self._routes = routes
        self._route = route
        self._triton = triton
        self._is_loadable = is_loadable
        self._records = records
        self._names = {release.label: load_bundle(release.bundle).info.model_name for release in routes.releases}
        self._before: str | None = None
        """What answered before the last promotion."""
        self._removed: dict[str, str] = {}
        """Why canaries were removed, by label."""
        self._num_loaded = 0
        self._turn = asyncio.Lock()

    @property
    def canary(self) -> str | None:
        return self._routes.canary.label if self._routes.canary else None

    async def load(self, bundle: str) -> str:
        """Load a bundle beside what serves and return its release's name; it answers nobody yet.

        Raises:
            ListingVisionError: it is not whole, is loaded already, or does not answer its golden photos.
        """
        async with self._turn:
            loaded = await asyncio.to_thread(load_bundle, bundle)
            if not self._is_loadable:
                raise ListingVisionError(
                    "the Triton that --triton names is not this service's own; load the model there and start a "
                    "gateway for it"
                )
            label = loaded.release
            if label in self._routes.labels:
                raise ListingVisionError(f"{label} is loaded already")
            self._num_loaded += 1
            name = f"{MODEL_NAME}_{self._num_loaded + 1}"
            if self._triton:
                await self._triton.add(name, loaded)
            release = ReleaseAt(label=label, bundle=loaded.folder, model_name=name)
            try:
                await self._change_to(replace(self._routes, releases=(*self._routes.releases, release)))
            except BaseException:
                if self._triton:
                    await self._triton.remove(name)
                raise
            self._names[label] = loaded.info.model_name
            _log.info("release %s is loaded", label)
            return label

    async def promote(self, release: str) -> None:
        """Have a loaded release answer all that no canary does; no call fails.

        Raises:
            ListingVisionError: it is not loaded, or does not answer its golden photos; what answered goes on.
        """
        async with self._turn:
            await self._check_golden(release)
            before = self._routes.stable
            routes = self._routes
            for purpose, share in routes.shares.items():
                if share.label == release:
                    routes = routes.with_share(purpose, None)
            await self._change_to(replace(routes, stable=release))
            if before != release:
                self._before = before
            if self._triton:
                self._triton.main = self._at(release).model_name
            _log.info("release %s answers", release)

    async def rollback(self) -> str:
        """Promote what answered before, and return its name.

        Raises:
            ListingVisionError: there is nothing to go back to.
        """
        if self._before is None:
            raise ListingVisionError("there is no release to go back to: none was promoted yet, or it is unloaded")
        label = self._before
        await self.promote(label)
        return label

    async def canary_on(self, release: str, share: float) -> None:
        """Have a loaded release answer a share of the listings, by their ids; it takes the place of any other canary.

        Raises:
            ListingVisionError: it is not loaded, answers the others, or is not well, or the share is no share.
        """
        async with self._turn:
            await self._give_share(CANARY, release, share)
            self._removed.pop(release, None)

    async def canary_off(self) -> None:
        """Have the stable release answer all listings."""
        async with self._turn:
            await self._change_to(self._routes.with_share(CANARY, None))

    async def remove_canary(self, release: str, why: str) -> bool:
        """As `canary_off`, by the service itself; False: it is the canary no longer."""
        async with self._turn:
            if self.canary != release:
                return False
            await self._change_to(self._routes.with_share(CANARY, None))
            self._removed[release] = why
            _log.error("canary %s is removed: %s", release, why)
            return True

    async def shadow_on(self, release: str, share: float) -> None:
        """Have a loaded release see a share of the listings, by their ids; its answers are recorded, never returned.

        Raises:
            ListingVisionError: as `canary_on`; or nothing is recorded.
        """
        async with self._turn:
            if not self._records:
                raise ListingVisionError("a shadow's answers are recorded with the outcomes; start with --outcomes")
            await self._give_share(SHADOW, release, share)

    async def shadow_off(self) -> None:
        """Have no release see listings that it does not answer."""
        async with self._turn:
            await self._change_to(self._routes.with_share(SHADOW, None))

    async def unload(self, release: str) -> None:
        """Let go of a release.

        Raises:
            ListingVisionError: it has a part to play, or is not loaded.
        """
        async with self._turn:
            at = self._at(release)
            if release == self._routes.stable:
                raise ListingVisionError(f"{release} answers; promote another one first")
            for purpose, share in self._routes.shares.items():
                if share.label == release:
                    raise ListingVisionError(
                        f"{release} is the {purpose}; `listing-vision model {purpose} --off` first"
                    )
            others = tuple(other for other in self._routes.releases if other is not at)
            await self._change_to(replace(self._routes, releases=others))
            if release == self._before:
                self._before = None
            self._removed.pop(release, None)
            if self._triton:
                await self._triton.remove(at.model_name)
            _log.info("release %s is unloaded", release)

    async def status(self) -> list[dict[str, object]]:
        """All that is loaded."""
        return [
            {
                "release": release.label,
                "name": self._names[release.label],
                "bundle": str(release.bundle),
                "state": self._state(release.label),
                "why_removed": self._removed.get(release.label),
            }
            for release in self._routes.releases
        ]

    def _state(self, label: str) -> str:
        if label == self._routes.stable:
            return "answers"
        for purpose, share in self._routes.shares.items():
            if share.label == label:
                return f"{purpose} {share.share:g}"
        return "answered before" if label == self._before else "loaded"

    def _at(self, label: str) -> ReleaseAt:
        for release in self._routes.releases:
            if release.label == label:
                return release
        raise ListingVisionError(f"{label} is not loaded; loaded: {', '.join(self._routes.labels)}")

    async def _check_golden(self, label: str) -> None:
        at = self._at(label)
        if self._triton:
            await self._triton.until_answering(at.model_name)

    async def _give_share(self, purpose: str, release: str, share: float) -> None:
        routes = self._routes.with_share(purpose, Share(label=release, share=share))
        await self._check_golden(release)
        await self._change_to(routes)
        _log.info("%s %s has %g of the listings", purpose, release, share)

    async def _change_to(self, routes: Routes) -> None:
        await self._route(routes)
        self._routes = routes
