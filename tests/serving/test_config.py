"""The options of `serve` as the supervisor hands them to its processes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from serving.config import ServeOptions
from serving.rollout.traffic_split import ReleaseSpec, TrafficSplit
from tests.conftest import ROOT
from vision.errors import ListingVisionError

EVERY_FIELD = ServeOptions(
    bundle=Path("/b"),
    host="::1",
    port=0,
    triton="triton:8001",
    triton_ca=Path("/triton-ca.crt"),
    triton_key_file=Path("/triton-key"),
    require_triton=True,
    model_name="listing_vision_2",
    in_process=True,
    workers=3,
    owns_triton=True,
    reuse_port=True,
    isolate=False,
    decode_in="gateway",
    tuning=Path("/tuning.json"),
    canary=Path("/c"),
    canary_share=0.1,
    shadow=Path("/s"),
    shadow_share=0.5,
    traffic_split=TrafficSplit(
        stable="1.2", releases=(ReleaseSpec(label="1.2", bundle=Path("/b"), model_name="listing_vision"),)
    ),
    state_folder=Path("/state"),
    drain_s=1,
    grace_period_s=2,
    health_interval_s=3,
    require_patched_triton=True,
    require_signature=Path("/etc/signing-key.pub"),
    connection_age_s=4,
    status_port=9090,
    http_port=8080,
    http_hosts=("shop.example",),
    photo_uris=("https://a/", "s3://b/"),
    outcomes="/o",
    suggestion_key=Path("/key"),
    suggestion_days=2.5,
    outcomes_days=30.5,
    runtime_folder=Path("/run"),
    tls_certificate=Path("/tls.crt"),
    tls_key=Path("/tls.key"),
    tls_client_ca=Path("/ca.crt"),
    tokens=Path("/tokens"),
    jwks="https://login.example/keys",
    jwt_audience="listing-vision",
    jwt_issuer="https://login.example",
    quota_photos_per_s=5.5,
    insecure=True,
    otlp_endpoint="http://collector:4318",
    trace_ratio=0.25,
)


def test_json_keeps_every_field():
    given = dataclasses.asdict(EVERY_FIELD)
    unchanged = {field.name for field in dataclasses.fields(ServeOptions) if given[field.name] == field.default}
    assert unchanged == set()  # each field has another value than its default
    assert ServeOptions.from_json(EVERY_FIELD.to_json()) == EVERY_FIELD
    plain = ServeOptions(bundle=Path("/b"))
    assert ServeOptions.from_json(plain.to_json()) == plain


def test_plain_text_stays_on_this_machine_unless_it_is_allowed():
    for options in ({"host": "127.0.0.1"}, {"host": "localhost"}, {"host": "0.0.0.0", "insecure": True}):
        ServeOptions(bundle=Path("/b"), **options).require_tls_beyond_loopback()
    with pytest.raises(ListingVisionError, match=r"refusing to listen on 0\.0\.0\.0 in plain text"):
        ServeOptions(bundle=Path("/b"), host="0.0.0.0").require_tls_beyond_loopback()


def test_the_flags_are_known_where_no_grpc_is_installed():
    code = (
        "import sys, serving.cli.serve; assert not {'grpc', 'google', 'prometheus_client', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
