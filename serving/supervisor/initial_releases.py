"""The releases that a service starts with: those of its options, and what its state folder adds to them."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from serving.config import ServeOptions
from serving.inference.model_names import CANARY_MODEL_NAME, SHADOW_MODEL_NAME
from serving.rollout.router import create_single_release_split
from serving.rollout.state_file import ReleaseState, StateFolder
from serving.rollout.traffic_split import CANARY, SHADOW, ReleaseSpec, TrafficShare, TrafficSplit
from serving.triton.watchdog import TritonWatchdog
from vision.bundle import load_bundle
from vision.errors import ListingVisionError

__all__ = ["load_initial_releases"]

_log = logging.getLogger(__name__)


async def load_initial_releases(
    options: ServeOptions, triton: TritonWatchdog | None, folder: StateFolder | None
) -> ReleaseState:
    """Load all releases in this service's own Triton, which has that of `options.bundle` already; None: no such Triton.

    Raises:
        ListingVisionError: one cannot be loaded.
    """
    initial = await _load_given(options, triton)
    if folder is None:
        return ReleaseState.start(initial)
    state = folder.read()
    if state is not None and not state.follows(initial):
        _log.warning("the options name other releases than those %s began with: what it holds is dropped", folder.path)
        state = None
    if state is None:
        state = ReleaseState.start(initial)
    else:
        state = state.continue_from(initial)
        if (shadow := state.traffic_split.shadow) and not options.outcomes:
            _log.warning("shadow %s is dropped: there is no --outcomes for its records", shadow.label)
            state = replace(state, traffic_split=replace(state.traffic_split, shadow=None))
        try:
            await _load_promoted(state, triton, options.require_signature)
        except ListingVisionError as error:
            raise ListingVisionError(f"{error}; to serve what the options name alone, remove {folder.path}") from error
    folder.write(state)
    folder.remove_copies_except(state)
    return state


async def _load_given(options: ServeOptions, triton: TritonWatchdog | None) -> TrafficSplit:
    """Return the traffic split of bundle, canary and shadow."""
    key = options.require_signature
    traffic_split = await asyncio.to_thread(
        create_single_release_split, options.bundle, model_name=options.model_name, public_key=key
    )
    for purpose, folder, name, share in (
        (CANARY, options.canary, CANARY_MODEL_NAME, options.canary_share),
        (SHADOW, options.shadow, SHADOW_MODEL_NAME, options.shadow_share),
    ):
        if folder is None:
            continue
        bundle = await asyncio.to_thread(load_bundle, folder, public_key=key)
        release = ReleaseSpec(label=bundle.release, bundle=bundle.folder, model_name=name)
        traffic_split = replace(traffic_split, releases=(*traffic_split.releases, release))
        traffic_split = traffic_split.with_share(purpose, TrafficShare(label=bundle.release, share=share))
        if triton:
            await triton.add(name, bundle)
    return traffic_split


async def _load_promoted(state: ReleaseState, triton: TritonWatchdog | None, public_key: Path | None) -> None:
    """Load what was loaded after the last start, and unload what was unloaded."""
    for release in state.traffic_split.releases:
        if release.label in state.initial.labels:
            continue
        bundle = await asyncio.to_thread(load_bundle, release.bundle, public_key=public_key)
        if bundle.release != release.label:
            raise ListingVisionError(f"{release.bundle} holds {bundle.release}, not the release {release.label}")
        if triton:
            await triton.add(release.model_name, bundle)
        _log.info("release %s is loaded as before", release.label)
    if triton:
        labels = state.traffic_split.labels
        triton.main_model = state.traffic_split.releases[labels.index(state.traffic_split.stable)].model_name
        for release in state.initial.releases:
            if release.label not in labels:
                await triton.remove(release.model_name)
