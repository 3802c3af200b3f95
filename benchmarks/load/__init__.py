"""A load generator for any running gateway: `python -m benchmarks.load HOST:PORT`, or `run_load` from a benchmark.

Closed loop: callers who each wait for their answer. Open loop: calls that come whether or not the last was answered,
their latency counted from when they should have been sent. Answers are checked against those to a quiet server.
"""

from benchmarks.load.connections import CallEnded, Connect, Connection, connect_grpc
from benchmarks.load.generator import learn_answers, run_load
from benchmarks.load.listings import Answer, Listing, make_listings
from benchmarks.load.photos import phone_photos, read_photos
from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import ENDINGS, Ending, LoadReport

__all__ = [
    "ENDINGS",
    "Answer",
    "CallEnded",
    "Connect",
    "Connection",
    "Ending",
    "Listing",
    "LoadPlan",
    "LoadReport",
    "connect_grpc",
    "learn_answers",
    "make_listings",
    "phone_photos",
    "read_photos",
    "run_load",
]
