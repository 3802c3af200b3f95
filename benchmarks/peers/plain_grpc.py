"""A minimal server: one grpc.aio process, decoder and model on one thread per core.

python -m benchmarks.peers.plain_grpc BUNDLE PORT
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks.peers.classifier import Classifier
from listing_vision_client.protocol import listing_vision_pb2 as pb


async def _serve(bundle: Path, port: int) -> None:
    classifier = Classifier(bundle)
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    loop = asyncio.get_running_loop()

    async def classify(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        return await loop.run_in_executor(threads, classifier, request)

    # Without serialisers bytes come and go as they are, and the parsing too happens on the threads.
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(classify)
    service = pb.DESCRIPTOR.services_by_name["ListingVisionService"]
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service.full_name, {"ClassifyListing": method}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
