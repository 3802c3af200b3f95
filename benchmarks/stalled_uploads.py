"""Measure memory while 40 uploads stop before their last byte, and whether other callers are answered meanwhile.

    python -m benchmarks.stalled_uploads [--bundle FOLDER] [--seconds 20]

Each upload announces a message of 60 MiB over a connection of its own and sends all but its last byte. Two other
callers classify one photo at a time all the while. In the second half a dropped upload begins again within a second.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from benchmarks.common import create_parser, write_result
from benchmarks.load import LoadPlan, LoadReport, create_phone_photos, record_expected_responses, run_load
from benchmarks.load.processes import measure_resident_mb, sample_memory
from benchmarks.load.stalled_upload import StalledUpload
from benchmarks.serving import create_default_bundle, serve_gateway

NUM_UPLOADS = 40
UPLOAD_BYTES = 60 << 20
RESTART_INTERVAL_S = 1.0


async def keep_stalled(port: int, seconds: float, *, restart: bool) -> int:
    """Hold uploads open, and begin dropped ones again if told; return how many the service dropped."""
    uploads = [_start_upload(port) for _ in range(NUM_UPLOADS)]
    num_dropped = 0
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for upload in [one for one in uploads if one.is_refused]:
            upload.close()
            uploads.remove(upload)
            num_dropped += 1
            if restart:
                uploads.append(_start_upload(port))
        await asyncio.sleep(RESTART_INTERVAL_S)
    for upload in uploads:
        upload.close()
    return num_dropped


def _start_upload(port: int) -> StalledUpload:
    upload = StalledUpload(port, UPLOAD_BYTES)
    upload.start()
    return upload


async def attack(address: str, photos: list[bytes], seconds: float, *, restart: bool) -> tuple[LoadReport, int]:
    expected = await record_expected_responses(address, photos)
    plan = LoadPlan(seconds=seconds, num_callers=2, deadline_s=5, warmup_s=0)
    port = int(address.rpartition(":")[2])
    report, num_dropped = await asyncio.gather(
        run_load(address, plan, photos, expected=expected), keep_stalled(port, seconds, restart=restart)
    )
    return report, num_dropped


def main() -> None:
    options = create_parser(__doc__, bundle=None, seconds=15.0).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    photos = create_phone_photos(range(8))
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, restart in (("", False), ("_restarting", True)):
        with serve_gateway(folder) as (address, pids):
            warmup = LoadPlan(seconds=3, num_callers=4, deadline_s=30, warmup_s=0)
            asyncio.run(run_load(address, warmup, photos))
            before_mb = measure_resident_mb(pids)
            with sample_memory(pids, every_s=0.2) as samples:
                report, num_dropped = asyncio.run(attack(address, photos, options.seconds, restart=restart))
        peak_mb = max(sum(by_name.values()) for _, by_name in samples)
        num_calls = sum(report.status_counts.values())
        metrics[f"rss_growth{name}_mb"] = peak_mb - before_mb
        metrics[f"others_answered_share{name}"] = report.count("ok") / max(1, num_calls)
        metrics[f"uploads_dropped{name}"] = num_dropped
        details[name or "once"] = {"before_mb": before_mb, "statuses": dict(report.status_counts)}
    write_result("stalled_uploads", metrics, details)


if __name__ == "__main__":
    main()
