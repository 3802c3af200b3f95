import asyncio
import subprocess
import sys

import grpc
import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.suggestion_id import write_random_key
from serving.config import SUGGESTION_KEY_FILE
from serving.http_api.upstream import Upstream
from serving.processes.sockets import gateway_socket_address
from tests.support.gateway import run_gateway


def call_model(folder):
    async def call():
        upstream = Upstream(folder)
        try:
            return await upstream.call("GetModel", pb.GetModelRequest(), timeout_s=10, metadata=())
        finally:
            await upstream.close()

    return call()


def test_a_gateway_that_has_gone_is_passed_over(bundle, tmp_path):
    write_random_key(tmp_path / SUGGESTION_KEY_FILE)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for pid in (ended.pid, 1):  # one is dead, one lives and does not listen
        (tmp_path / f"{pid}.sock").touch()
    assert gateway_socket_address(tmp_path, 1).endswith(str(tmp_path / "1.sock"))

    async def run():
        async with run_gateway(bundle, runtime_folder=tmp_path):
            return [(await call_model(tmp_path)).model.version for _ in range(3)]

    assert asyncio.run(run()) == [bundle.info.model_version] * 3


def test_without_any_gateway_it_is_unavailable(tmp_path):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(call_model(tmp_path))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
