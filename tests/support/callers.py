"""A gateway that wants credentials, and callers of it with and without them."""

import contextlib
import hashlib
from pathlib import Path

from listing_vision_client import Access, AsyncListingVisionClient, CallFailed
from serving.config import ServeOptions
from serving.gateway.server import GatewayServer
from tests.support.helpers import create_scene, encode_image

PHOTO = encode_image(create_scene(120, 90))


@contextlib.asynccontextmanager
async def run_secured_gateway(bundle, **options):
    """Yields the address of a gateway with the model and the decoders in this process."""
    options |= {"port": 0, "in_process": True, "isolate": False, "drain_s": 0}
    server = GatewayServer(ServeOptions(bundle=bundle.folder, **options))
    await server.start()
    try:
        yield f"localhost:{server.port}"
    finally:
        await server.stop()


async def classify(address: str, access: Access, *, num_photos: int = 1) -> str:
    """`OK`, or the code, the reason and the message of the failure."""
    async with AsyncListingVisionClient(address, access) as client:
        try:
            await client.classify([PHOTO] * num_photos, timeout_s=10)
        except CallFailed as failed:
            return f"{failed.code.name} {failed.reason} {failed.message}"
        return "OK"


def write_token_file(path: Path, **tokens: str) -> Path:
    lines = [f"{name} {hashlib.sha256(token.encode()).hexdigest()}" for name, token in tokens.items()]
    path.write_text("\n".join(["# name, SHA-256 of the token", *lines, ""]))
    return path
