"""Measure which instances, batch and queue delay of a local Triton give the most photos/s within a latency budget."""

import asyncio
import io
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from listing_vision_client import AsyncListingVisionClient
from serving.config import ServeOptions
from serving.gateway.server import GatewayServer
from serving.inference.health import wait_for_golden_photos
from serving.inference.triton import TritonEngine
from serving.triton.config import RepositoryOptions
from serving.triton.install import TritonInstallation
from serving.triton.process import LocalTriton
from vision.bundle import Bundle
from vision.errors import ListingVisionError
from vision.runtime.cpus import count_usable_cores

__all__ = ["Budget", "Measurement", "create_measure", "format_table", "tune", "write_tuning"]

WARM_UP_S = 1.0
PHOTO_PX = (1440, 1080)
"""What phones upload after an app has scaled it; decoding must be measured too, since it competes for the CPU."""
MIN_IMPROVEMENT = 1.03
"""How many times the photos/s another setting must give to be chosen; less may be noise."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    p99_ms: float
    """Largest acceptable p99."""
    callers: int
    """Concurrent callers, each sending its next listing when the last one is classified."""
    seconds: float
    """Duration of each setting's measurement."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    options: RepositoryOptions
    photos_per_s: float
    p50_ms: float
    p99_ms: float

    def fits(self, budget: Budget) -> bool:
        return self.p99_ms <= budget.p99_ms


def tune(
    budget: Budget,
    measure_options: Callable[[RepositoryOptions], Measurement],
    *,
    on_measurement: Callable[[Measurement], None],
) -> tuple[Measurement, list[Measurement]]:
    """Return the best setting and all measurements; one kind of setting is varied after another, from the best so far.

    Args:
        measure_options: `create_measure` makes it of a bundle.

    Raises:
        ListingVisionError: no setting keeps the budget; the fastest is named.
    """
    tried: dict[RepositoryOptions, Measurement] = {}

    def measure(options: RepositoryOptions) -> Measurement:
        if options not in tried:
            tried[options] = measure_options(options)
            on_measurement(tried[options])
        return tried[options]

    best = measure(RepositoryOptions(backend="python", instances=_list_instance_counts()[-1]))
    for vary in VARIATIONS:
        for options in vary(best.options):
            best = _choose_better(best, measure(options), budget)
    if not best.fits(budget):
        fastest = min(tried.values(), key=lambda m: m.p99_ms)
        raise ListingVisionError(
            f"no setting keeps p99 within {budget.p99_ms:g} ms at {budget.callers} callers; the fastest needs "
            f"{fastest.p99_ms:.0f} ms: allow more with --p99-ms, or fewer --callers"
        )
    return best, list(tried.values())


def format_table(measured: Sequence[Measurement], budget: Budget) -> str:
    """Return the measurements as a table for people."""
    head = f"{'instances':>9} {'batch':>5} {'delay':>8} {'photos/s':>8} {'p50':>8} {'p99':>8}"
    rows = [
        f"{m.options.num_instances:>9} {m.options.preferred_batch_size:>5} {m.options.max_queue_delay_us or 0:>5} us "
        f"{m.photos_per_s:>8.1f} {m.p50_ms:>5.0f} ms {m.p99_ms:>5.0f} ms{'' if m.fits(budget) else '  over budget'}"
        for m in measured
    ]
    return "\n".join([head, *rows])


def write_tuning(path: Path, best: Measurement, measured: Iterable[Measurement], budget: Budget) -> None:
    """Write what `serving.triton.config.read_tuning` reads, and all measurements."""
    written = {
        "best": _get_tuned_options(best.options),
        "budget": asdict(budget),
        "cores": count_usable_cores(),
        "measured": [
            {**_get_tuned_options(m.options), "photos_per_s": m.photos_per_s, "p50_ms": m.p50_ms, "p99_ms": m.p99_ms}
            for m in measured
        ],
    }
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _get_tuned_options(options: RepositoryOptions) -> dict[str, object]:
    names = ("backend", "instances", "preferred_batch_size", "max_queue_delay_us")
    return {name: getattr(options, name) for name in names}


def _list_instance_counts() -> list[int]:
    cores = count_usable_cores()
    return sorted({max(1, cores // 2), cores, max(1, 3 * cores // 2), 2 * cores})


def _vary_instances(best: RepositoryOptions) -> list[RepositoryOptions]:
    return [replace(best, instances=instances) for instances in _list_instance_counts()]


def _vary_batch(best: RepositoryOptions) -> list[RepositoryOptions]:
    return [replace(best, preferred_batch_size=photos) for photos in (1, 2, 4, 8)]


def _vary_delay(best: RepositoryOptions) -> list[RepositoryOptions]:
    if best.preferred_batch_size == 1:  # there is nothing to wait for
        return []
    return [replace(best, max_queue_delay_us=delay_us) for delay_us in (1000, 4000)]


VARIATIONS = (_vary_instances, _vary_batch, _vary_delay)
"""From the best options so far to those to measure next."""


def _choose_better(one: Measurement, other: Measurement, budget: Budget) -> Measurement:
    if one.fits(budget) != other.fits(budget):
        return one if one.fits(budget) else other
    if not one.fits(budget):
        return min(one, other, key=lambda m: m.p99_ms)
    return other if other.photos_per_s > MIN_IMPROVEMENT * one.photos_per_s else one


def _create_photos(bundle: Bundle) -> list[bytes]:
    photos = []
    for pixels in bundle.golden.photos_nhwc:
        out = io.BytesIO()
        Image.fromarray(pixels).resize(PHOTO_PX).save(out, "JPEG", quality=90)
        photos.append(out.getvalue())
    return photos


def create_measure(
    bundle: Bundle, installation: TritonInstallation, budget: Budget
) -> Callable[[RepositoryOptions], Measurement]:
    """Return a function that starts a Triton with given options and measures it behind a gateway of this process."""
    photos = _create_photos(bundle)
    return lambda options: asyncio.run(_measure(bundle, installation, options, budget, photos))


async def _measure(
    bundle: Bundle, installation: TritonInstallation, options: RepositoryOptions, budget: Budget, photos: list[bytes]
) -> Measurement:
    triton = LocalTriton(bundle, installation, options)
    triton.start()
    server: GatewayServer | None = None
    try:
        await asyncio.to_thread(triton.wait_until_listening)
        engine = TritonEngine(triton.address)
        try:
            await wait_for_golden_photos(engine, bundle)
        finally:
            await engine.close()
        server = GatewayServer(ServeOptions(bundle=bundle.folder, port=0, triton=triton.address, drain_s=0))
        await server.start()
        async with AsyncListingVisionClient(f"127.0.0.1:{server.port}") as client:
            await _generate_load(client, photos, budget.callers, WARM_UP_S)
            started_s = time.monotonic()
            latencies_ms = await _generate_load(client, photos, budget.callers, budget.seconds)
            seconds = time.monotonic() - started_s
    finally:
        if server:
            await server.stop()
        await asyncio.to_thread(triton.stop)
    return Measurement(
        options=options,
        photos_per_s=len(latencies_ms) / seconds,
        p50_ms=statistics.median(latencies_ms),
        p99_ms=float(np.percentile(latencies_ms, 99)),
    )


async def _generate_load(
    client: AsyncListingVisionClient, photos: list[bytes], callers: int, seconds: float
) -> list[float]:
    latencies_ms: list[float] = []
    until_s = time.monotonic() + seconds

    async def caller(number: int) -> None:
        while (started_s := time.monotonic()) < until_s:
            await client.classify([photos[number % len(photos)]], timeout_s=60)
            latencies_ms.append((time.monotonic() - started_s) * 1000)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return latencies_ms
