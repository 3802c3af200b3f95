"""Send load to a running gateway and report how each call ended.

    python -m benchmarks.load 127.0.0.1:50051 --photos synthetic --closed 32 --seconds 10
    python -m benchmarks.load 127.0.0.1:50051 --photos ~/photos --open 120 --deadline-s 2

Closed loop: each caller sends its next call when its last one ends, so that a slow server gets fewer. Open loop: calls
arrive by a Poisson process, and latency is counted from when a call was due.
"""

import argparse
import asyncio
from pathlib import Path

from benchmarks.common import describe_machine
from benchmarks.load import CallError, LoadPlan, create_phone_photos, read_photos, run_load


def _parser() -> argparse.ArgumentParser:
    default = {name: field.default for name, field in LoadPlan.__dataclass_fields__.items()}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("address", metavar="HOST:PORT")
    add(
        "--photos",
        default="synthetic",
        metavar="FOLDER|synthetic",
        help="synthetic: 64 photos of 1440x1080, about 300 KB each",
    )
    add("--photos-per-listing", type=int, default=default["num_photos_per_listing"])
    loop = parser.add_mutually_exclusive_group(required=True)
    loop.add_argument("--closed", type=int, metavar="CALLERS")
    loop.add_argument("--open", type=float, metavar="CALLS_PER_S")
    add("--seconds", type=float, default=10.0)
    add("--warmup-s", type=float, default=default["warmup_s"])
    add("--deadline-s", type=float, default=default["deadline_s"])
    add("--connections", type=int, default=default["num_connections"])
    add("--ramp-s", type=float, default=default["ramp_s"], help="open the connections one after another over this time")
    add("--max-in-flight", type=int, default=default["max_in_flight"], help="open loop: beyond it calls are not sent")
    add("--hostile", type=Path, metavar="FOLDER", help="photos that must each be answered with an error")
    add("--hostile-share", type=float, help="of calls with one of them; default 0.1 with --hostile, else 0")
    add("--short-deadline-share", type=float, default=default["short_deadline_share"])
    add("--short-deadline-s", type=float, nargs=2, default=default["short_deadline_s"], metavar=("LEAST", "MOST"))
    add("--seed", type=int, default=default["seed"])
    return parser


def _plan(options: argparse.Namespace) -> LoadPlan:
    hostile_share = options.hostile_share
    if hostile_share is None:
        hostile_share = 0.1 if options.hostile else 0.0
    return LoadPlan(
        seconds=options.seconds,
        num_callers=options.closed,
        rate_per_s=options.open,
        warmup_s=options.warmup_s,
        num_photos_per_listing=options.photos_per_listing,
        deadline_s=options.deadline_s,
        num_connections=options.connections,
        ramp_s=options.ramp_s,
        max_in_flight=options.max_in_flight,
        hostile_share=hostile_share,
        short_deadline_share=options.short_deadline_share,
        short_deadline_s=tuple(options.short_deadline_s),
        seed=options.seed,
    )


def main() -> None:
    options = _parser().parse_args()
    try:
        plan = _plan(options)
        photos = create_phone_photos() if options.photos == "synthetic" else read_photos(Path(options.photos))
        hostile = read_photos(options.hostile) if options.hostile else []
        report = asyncio.run(run_load(options.address, plan, photos, hostile=hostile))
    except CallError as error:
        raise SystemExit(f"{options.address} answered {error} before there was any load") from error
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(report.table())
    print(f"machine: {describe_machine()}")


if __name__ == "__main__":
    main()
