"""Load, promote, roll back and unload the releases of a running service; set canary and shadow."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serving.inference.model_names import MODEL_NAME
from serving.rollout.state_file import ReleaseState
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseSpec, TrafficShare, TrafficSplit
from vision.bundle import Bundle, check_beside, load_bundle
from vision.errors import ListingVisionError
from vision.runtime.files import sync_to_disk

if TYPE_CHECKING:
    from serving.triton.watchdog import TritonWatchdog

__all__ = ["ReleaseManager"]

_log = logging.getLogger(__name__)

ApplyTrafficSplit = Callable[[TrafficSplit], Awaitable[None]]
"""Switch all gateway processes to a traffic split. Raises ListingVisionError: it failed; nothing has changed."""


class ReleaseManager:
    """Its public coroutines are the operator's commands, executed one at a time."""

    def __init__(
        self,
        state: ReleaseState,
        apply_traffic_split: ApplyTrafficSplit,
        *,
        triton: "TritonWatchdog | None",
        can_load: bool,
        is_recording: bool,
        folder: Path,
        save: Callable[[ReleaseState], None] | None = None,
        public_key: Path | None = None,
    ) -> None:
        """Args:
        state: the releases that the gateway processes have.
        apply_traffic_split: switches the gateway processes.
        triton: this service's own Triton; None: the model runs in the gateway processes, or in an external Triton.
        can_load: whether releases can be loaded, that is the Triton is not external.
        is_recording: whether shadow results are stored.
        folder: for copies of the bundles that are loaded, which an operator may move or delete.
        save: keeps the state after each command; it may raise ListingVisionError. None: it ends with the service.
        public_key: PEM file of the key that must have signed what is loaded; None: nothing need be signed.
        """
        self._state = state
        self._apply_traffic_split = apply_traffic_split
        self._triton = triton
        self._can_load = can_load
        self._is_recording = is_recording
        self._folder = folder
        self._public_key = public_key
        self._save = save
        self._bundles = {release.label: load_bundle(release.bundle) for release in self._traffic_split.releases}
        self._last_number = max((_read_number(release) for release in self._traffic_split.releases), default=1)
        """The largest in a model name so far."""
        self._command_lock = asyncio.Lock()

    @property
    def _traffic_split(self) -> TrafficSplit:
        return self._state.traffic_split

    @property
    def canary(self) -> str | None:
        return self._traffic_split.canary.label if self._traffic_split.canary else None

    async def load(self, bundle: str) -> str:
        """Load a bundle beside the serving ones and return its release name; it gets no traffic yet.

        Raises:
            ListingVisionError: it is incomplete, unsigned where it must be signed, loaded already, fails its golden
                photos, or is another model under the version of a loaded one.
        """
        async with self._command():
            loaded = await asyncio.to_thread(load_bundle, bundle, public_key=self._public_key)
            if not self._can_load:
                raise ListingVisionError(
                    "the Triton that --triton names is not this service's own; load the model there and start a "
                    "gateway for it"
                )
            label = loaded.release
            for other in self._traffic_split.labels:
                check_beside(loaded, self._bundles[other])
            if label in self._traffic_split.labels:
                raise ListingVisionError(f"{label} is loaded already")
            self._last_number += 1
            name = f"{MODEL_NAME}_{self._last_number}"
            own = await asyncio.to_thread(_copy_bundle, loaded.folder, self._folder / name, self._public_key)
            try:
                await self._start(ReleaseSpec(label=label, bundle=own.folder, model_name=name), own)
            except BaseException:
                shutil.rmtree(own.folder)
                raise
            self._bundles[label] = own
            self._state = replace(self._state, sources={**self._state.sources, label: loaded.folder})
            _log.info("release %s is loaded", label)
            return label

    async def _start(self, release: ReleaseSpec, bundle: Bundle) -> None:
        """Load a release in Triton and in all gateway processes, or in none."""
        if self._triton:
            await self._triton.add(release.model_name, bundle)
        try:
            await self._switch_to(replace(self._traffic_split, releases=(*self._traffic_split.releases, release)))
        except BaseException:
            if self._triton:
                await self._triton.remove(release.model_name)
            raise

    async def promote(self, release: str) -> None:
        """Make a loaded release the stable one; no call fails.

        Raises:
            ListingVisionError: it is not loaded, or fails its golden photos; nothing has changed.
        """
        async with self._command():
            await self._check_golden_photos(release)
            before = self._traffic_split.stable
            traffic_split = self._traffic_split
            for purpose, share in traffic_split.shares.items():
                if share.label == release:
                    traffic_split = traffic_split.with_share(purpose, None)
            await self._switch_to(replace(traffic_split, stable=release))
            if before != release:
                self._state = replace(self._state, previous=before)
            if self._triton:
                self._triton.main_model = self._find_release(release).model_name
            _log.info("release %s answers", release)

    async def rollback(self) -> str:
        """Promote the previous stable release and return its name.

        Raises:
            ListingVisionError: there is no previous release.
        """
        label = self._state.previous
        if label is None:
            raise ListingVisionError("there is no release to go back to: none was promoted yet, or it is unloaded")
        await self.promote(label)
        return label

    async def set_canary(self, release: str, share: float) -> None:
        """Make a loaded release the canary for a share of the listings, chosen by id; it replaces any other canary.

        Raises:
            ListingVisionError: it is not loaded, is the stable release, is unhealthy, or the share is outside (0, 1].
        """
        async with self._command():
            await self._set_share(CANARY, release, share)
            self._forget_removal(release)

    async def clear_canary(self) -> None:
        """Send all listings to the stable release."""
        async with self._command():
            await self._switch_to(self._traffic_split.with_share(CANARY, None))

    async def remove_canary(self, release: str, reason: str) -> bool:
        """Remove an unhealthy canary; return False if it is no longer the canary."""
        async with self._command():
            if self.canary != release:
                return False
            await self._switch_to(self._traffic_split.with_share(CANARY, None))
            self._state = replace(self._state, removal_reasons={**self._state.removal_reasons, release: reason})
            _log.error("canary %s is removed: %s", release, reason)
            return True

    async def set_shadow(self, release: str, share: float) -> None:
        """Copy a share of the listings, chosen by id, to a loaded release; its results are recorded, never returned.

        Raises:
            ListingVisionError: as `set_canary`; or outcomes are not recorded.
        """
        async with self._command():
            if not self._is_recording:
                raise ListingVisionError("a shadow's answers are recorded with the outcomes; start with --outcomes")
            await self._set_share(SHADOW, release, share)

    async def clear_shadow(self) -> None:
        """Stop shadow traffic."""
        async with self._command():
            await self._switch_to(self._traffic_split.with_share(SHADOW, None))

    async def unload(self, release: str) -> None:
        """Unload a release.

        Raises:
            ListingVisionError: it is active, or is not loaded.
        """
        async with self._command():
            spec = self._find_release(release)
            if release == self._traffic_split.stable:
                raise ListingVisionError(f"{release} answers; promote another one first")
            for purpose, share in self._traffic_split.shares.items():
                if share.label == release:
                    raise ListingVisionError(
                        f"{release} is the {purpose}; `listing-vision model {purpose} --off` first"
                    )
            others = tuple(other for other in self._traffic_split.releases if other is not spec)
            await self._switch_to(replace(self._traffic_split, releases=others))
            self._forget_removal(release)
            sources = {label: source for label, source in self._state.sources.items() if label != release}
            previous = None if release == self._state.previous else self._state.previous
            self._state = replace(self._state, sources=sources, previous=previous)
            del self._bundles[release]
            if self._triton:
                await self._triton.remove(spec.model_name)
        # Not before the state without it is saved.
        if spec.bundle.is_relative_to(self._folder):
            await asyncio.to_thread(shutil.rmtree, spec.bundle)
        _log.info("release %s is unloaded", release)

    async def status(self) -> list[dict[str, object]]:
        """Return all loaded releases with their state."""
        return [
            {
                "release": release.label,
                "name": self._bundles[release.label].info.model_name,
                "bundle": str(self._state.sources[release.label]),
                "state": self._describe(release.label),
                "removal_reason": self._state.removal_reasons.get(release.label),
            }
            for release in self._traffic_split.releases
        ]

    def _describe(self, label: str) -> str:
        if label == self._traffic_split.stable:
            return "stable"
        for purpose, share in self._traffic_split.shares.items():
            if share.label == label:
                return f"{purpose} {share.share:g}"
        return "previous" if label == self._state.previous else "loaded"

    def _find_release(self, label: str) -> ReleaseSpec:
        for release in self._traffic_split.releases:
            if release.label == label:
                return release
        raise ListingVisionError(f"{label} is not loaded; loaded: {', '.join(self._traffic_split.labels)}")

    async def _check_golden_photos(self, label: str) -> None:
        spec = self._find_release(label)
        if self._triton:
            await self._triton.wait_until_healthy(spec.model_name)

    async def _set_share(self, purpose: str, release: str, share: float) -> None:
        traffic_split = self._traffic_split.with_share(purpose, TrafficShare(label=release, share=share))
        await self._check_golden_photos(release)
        await self._switch_to(traffic_split)
        _log.info("%s %s has %g of the listings", purpose, release, share)

    async def _switch_to(self, traffic_split: TrafficSplit) -> None:
        await self._apply_traffic_split(traffic_split)
        self._state = replace(self._state, traffic_split=traffic_split)

    def _forget_removal(self, release: str) -> None:
        reasons = {label: reason for label, reason in self._state.removal_reasons.items() if label != release}
        self._state = replace(self._state, removal_reasons=reasons)

    @asynccontextmanager
    async def _command(self) -> AsyncIterator[None]:
        """Execute one command at a time; what it has changed is saved at its end."""
        async with self._command_lock:
            before = self._state
            try:
                yield
            finally:
                if self._save and self._state != before:
                    await asyncio.to_thread(self._save, self._state)


def _read_number(release: ReleaseSpec) -> int:
    """Return the number in a model name that a manager has given; 1 for other names."""
    number = release.model_name.removeprefix(f"{MODEL_NAME}_")
    return int(number) if number.isdecimal() else 1


def _copy_bundle(folder: Path, copy: Path, public_key: Path | None) -> Bundle:
    """Copy a bundle and return the copy, its hashes and signature checked again."""
    try:
        shutil.copytree(folder, copy)
        for path in (*copy.rglob("*"), copy):
            sync_to_disk(path)
        return load_bundle(copy, public_key=public_key)
    except BaseException as error:
        shutil.rmtree(copy, ignore_errors=True)
        if isinstance(error, OSError):
            raise ListingVisionError(f"bundle {folder} cannot be copied: {error}") from error
        raise
