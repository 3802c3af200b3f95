"""Measure memory while 40 uploads stop before their last byte, and whether other callers are answered meanwhile.

    python -m benchmarks.stalled_uploads [--bundle FOLDER] [--seconds 20]

Each upload announces a message of 60 MiB over a connection of its own and sends all but its last byte. Another caller
classifies one photo at a time all the while. A dropped upload begins again, so that the attack lasts.
"""

import asyncio
import time
from pathlib import Path

from benchmarks.common import create_parser, write_result
from benchmarks.load import LoadPlan, LoadReport, create_phone_photos, record_expected_responses, run_load
from benchmarks.load.processes import measure_resident_mb, sample_memory
from benchmarks.load.stalled_upload import StalledUpload
from benchmarks.serving import create_default_bundle, serve_gateway

NUM_UPLOADS = 40
UPLOAD_BYTES = 60 << 20
RESTART_INTERVAL_S = 0.25


async def keep_stalled(port: int, seconds: float) -> int:
    """Keep all uploads open; return how many the service dropped."""
    uploads: list[StalledUpload] = []
    num_dropped = 0
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for upload in [one for one in uploads if one.is_refused]:
            upload.close()
            uploads.remove(upload)
            num_dropped += 1
        while len(uploads) < NUM_UPLOADS:
            upload = StalledUpload(port, UPLOAD_BYTES)
            upload.start()
            uploads.append(upload)
        await asyncio.sleep(RESTART_INTERVAL_S)
    for upload in uploads:
        upload.close()
    return num_dropped


async def attack(address: str, photos: list[bytes], seconds: float) -> tuple[LoadReport, int]:
    expected = await record_expected_responses(address, photos)
    plan = LoadPlan(seconds=seconds, num_callers=2, deadline_s=5, warmup_s=0)
    port = int(address.rpartition(":")[2])
    report, num_dropped = await asyncio.gather(
        run_load(address, plan, photos, expected=expected), keep_stalled(port, seconds)
    )
    return report, num_dropped


def main() -> None:
    options = create_parser(__doc__, bundle=None, seconds=20.0).parse_args()
    folder: Path = options.bundle or create_default_bundle()
    photos = create_phone_photos(range(8))
    with serve_gateway(folder) as (address, pids):
        asyncio.run(
            run_load(address, LoadPlan(seconds=3, num_callers=4, deadline_s=30, warmup_s=0), photos, expected=None)
        )
        before_mb = measure_resident_mb(pids)
        with sample_memory(pids, every_s=0.2) as samples:
            report, num_dropped = asyncio.run(attack(address, photos, options.seconds))
    peak_mb = max(sum(by_name.values()) for _, by_name in samples)
    num_calls = sum(report.status_counts.values())
    metrics = {
        "rss_growth_mb": peak_mb - before_mb,
        "others_answered_share": report.count("ok") / max(1, num_calls),
        "uploads_dropped": num_dropped,
    }
    write_result("stalled_uploads", metrics, {"before_mb": before_mb, "statuses": dict(report.status_counts)})


if __name__ == "__main__":
    main()
