"""A Triton with known faults is named, unless nobody else can reach it."""

import datetime
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.triton.patched_version import TritonSecurity, find_version_problem, is_reachable_by_others
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("version", "is_named"),
    [("2.51.0", True), ("2.74.9", True), ("2.75.0", False), ("2.100.0", False), ("3.0", False), ("", True)],
)
def test_versions_before_the_minimum_are_named(version, is_named):
    problem = find_version_problem(version, "triton.shop:8001")
    assert (problem is not None) == is_named
    if problem:
        assert f"the Triton at triton.shop:8001 is version {version}" in problem
        assert TritonSecurity.load().minimum_version in problem


@pytest.mark.parametrize("address", ["127.0.0.1:8001", "[::1]:8001", "localhost:8001", "unix:/run/triton/grpc"])
def test_a_triton_that_only_this_machine_reaches_may_be_of_any_version(address):
    assert not is_reachable_by_others(address)


@pytest.mark.parametrize("address", ["triton.shop:8001", "10.0.0.7:8001", "[2001:db8::1]:8001"])
def test_any_other_triton_is_checked(address):
    assert is_reachable_by_others(address)


def test_the_file_is_dated_and_says_what_it_is_based_on():
    security = TritonSecurity.load()
    assert isinstance(security.read_on, datetime.date)
    assert security.bulletins
    assert f":{max(security.fixed)}-" in security.image


class _Metadata(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse(name="triton", version="2.61.0")


@pytest.fixture
def old_triton():
    """Port of a server that says what an old Triton says."""
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Metadata(), server)
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_a_triton_with_known_faults_is_refused_where_a_patched_one_is_required(bundle, old_triton):
    command = [sys.executable, "-m", "listing_vision", "serve", str(bundle.folder), "--port", "0"]
    command += ["--triton", f"0.0.0.0:{old_triton}", "--require-patched-triton"]  # all addresses: not only loopback
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert f"the Triton at 0.0.0.0:{old_triton} is version 2.61.0, which has known security faults" in done.stderr
