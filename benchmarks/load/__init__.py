"""A load generator for any running gateway: `python -m benchmarks.load HOST:PORT`, or `run_load` from a benchmark.

Closed loop: each caller waits for its response. Open loop: calls arrive at a rate, and latency is counted from when a
call was due. Responses are compared with those of an idle server.
"""

from benchmarks.load.connections import CallError, Connect, Connection, connect_grpc
from benchmarks.load.generator import record_expected_responses, run_load
from benchmarks.load.listings import ExpectedResponse, Listing, make_listings
from benchmarks.load.photos import create_phone_photos, read_photos
from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import CALL_RESULTS, CallResult, LoadReport

__all__ = [
    "CALL_RESULTS",
    "CallError",
    "CallResult",
    "Connect",
    "Connection",
    "ExpectedResponse",
    "Listing",
    "LoadPlan",
    "LoadReport",
    "connect_grpc",
    "create_phone_photos",
    "make_listings",
    "read_photos",
    "record_expected_responses",
    "run_load",
]
