"""One gateway process with the commands of its supervisor, without a supervisor."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api.suggestion_id import write_random_key
from serving.config import SUGGESTION_KEY_FILE, ServeOptions
from serving.processes.sockets import gateway_socket_address
from serving.rollout.router import create_single_release_split
from serving.supervisor.managed_process import ManagedProcess
from vision.errors import ListingVisionError


def test_it_serves_takes_commands_and_stops(bundle, tmp_path):
    write_random_key(tmp_path / SUGGESTION_KEY_FILE)  # as its supervisor does
    options = ServeOptions(
        bundle=bundle.folder, port=0, in_process=True, isolate=False, drain_s=0, runtime_folder=tmp_path
    )
    split = create_single_release_split(options.bundle, model_name=options.model_name)

    async def run():
        process = await ManagedProcess.start("gateway process", "serving.supervisor.gateway_worker", options)
        async with grpc.aio.insecure_channel(gateway_socket_address(tmp_path, process.pid)) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert await process.send_command("list_unhealthy", timeout_s=30) == []
        await process.send_command("apply_traffic_split", timeout_s=30, traffic_split=split.to_dict())
        with pytest.raises(ListingVisionError, match="not a command of apply_traffic_split, list_unhealthy"):
            await process.send_command("promote", timeout_s=30)
        watch = asyncio.create_task(process.watch("list_unhealthy"))
        await process.stop()
        assert await watch == 0

    asyncio.run(run())
