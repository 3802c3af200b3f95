"""A gateway in this process, called over a real channel, and doubles for what no real engine does on demand."""

import asyncio
import contextlib
import os
import signal

import grpc
import prometheus_client

from listing_vision_client import AsyncListingVisionClient
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.config import ServeOptions
from serving.gateway.admission import Admission, ThroughputEstimator
from serving.gateway.server import GatewayServer
from serving.rollout.traffic_split import ReleaseSpec, TrafficShare, TrafficSplit
from tests.support.helpers import create_scene, encode_image, list_decoder_pids

PHOTO = encode_image(create_scene(200, 150))


@contextlib.asynccontextmanager
async def run_gateway_with(options, **seams):
    gateway_server = GatewayServer(options, **seams)
    await gateway_server.start()
    try:
        async with AsyncListingVisionClient(f"127.0.0.1:{gateway_server.port}") as client:
            yield gateway_server, client
    finally:
        await gateway_server.stop()


def run_gateway(bundle, *, admission=None, photo_fetcher=None, **options):
    options = ServeOptions(bundle=bundle.folder, port=0, in_process=True, drain_s=0, **options)
    return run_gateway_with(options, admission=admission, photo_fetcher=photo_fetcher)


def call_gateway(bundle, photos, **options):
    async def call():
        async with run_gateway(bundle) as (_, client):
            return await client.classify(photos, **options)

    return asyncio.run(call())


@contextlib.asynccontextmanager
async def open_stub(gateway_server):
    """The generated stub, for what the client library does not send."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway_server.port}") as channel:
        yield pb_grpc.ListingVisionServiceStub(channel)


def classify_with_engine(bundle, engine, photos=(PHOTO,), **options):
    async def call():
        async with run_gateway(bundle, health_interval_s=60) as (gateway_server, client):
            release = gateway_server.router.stable
            real, release.engine = release.engine, engine
            try:
                return await client.classify(photos, **options)
            finally:
                release.engine = real

    return asyncio.run(call())


class FailingEngine:
    """Fails each call after some seconds."""

    infer_encoded = None

    def __init__(self, error=None, seconds=0.0):
        self.error, self.seconds, self.calls = error, seconds, 0

    async def infer(self, photos_nhwc, **options):
        self.calls += 1
        await asyncio.sleep(self.seconds)
        raise self.error

    async def infer_golden(self, photos_nhwc):
        return await self.infer(photos_nhwc)

    async def close(self):
        pass


class BusyAdmission(Admission):
    """Says that the machine is busy while `is_busy`, and how long a photo would wait where `wait_s` is given."""

    def __init__(self, *, is_busy=True, wait_s=None, **limits):
        super().__init__(ThroughputEstimator(saturation_photos=4), **limits)
        self.is_busy, self.wait_s = is_busy, wait_s

    def is_idle(self):
        return not self.is_busy and super().is_idle()

    def estimate_wait_s(self, num_photos, caller=None):
        return super().estimate_wait_s(num_photos, caller) if self.wait_s is None else self.wait_s


@contextlib.asynccontextmanager
async def stop_decoders(gateway_server):
    """Freeze all decode workers, so that whatever is to be decoded waits."""
    workers = list_decoder_pids(gateway_server.router.stable.decoders)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):  # a test may have killed it
                os.kill(pid, signal.SIGCONT)


def read_metric(name: str, **labels: str) -> float:
    """A sample of the gateway's metrics; 0 before the first observation."""
    return prometheus_client.REGISTRY.get_sample_value(f"listing_vision_gateway_{name}", labels) or 0.0


def create_split(*bundles, **parts):
    releases = tuple(ReleaseSpec(label=b.release, bundle=b.folder, model_name="unused") for b in bundles)
    return TrafficSplit(releases=releases, stable=bundles[0].release, **parts)


def run_split(traffic_split, *, admission=None, **options):
    bundle = traffic_split.releases[0].bundle
    fixed = {"traffic_split": traffic_split, "port": 0, "in_process": True, "isolate": False, "drain_s": 0}
    return run_gateway_with(ServeOptions(bundle=bundle, **fixed, **options), admission=admission)


def create_share(bundle, share=1.0):
    return TrafficShare(label=bundle.release, share=share)


def get_release(server, bundle):
    return server.router.releases[bundle.release]
