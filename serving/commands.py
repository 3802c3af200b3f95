"""The verbs of serving: `serve`, `triton`; `classify` stands in `listing_vision`, for it can also explain."""

from pathlib import Path
from typing import Annotated

import typer

from vision.commands import new_app
from vision.errors import ListingVisionError, TritonUnsupported

__all__ = ["serve", "triton_app"]

triton_app = new_app("Bring in a Triton server, or write a model repository for one.")


def serve(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.", envvar="LISTING_VISION_BUNDLE")],
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="LISTING_VISION_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", envvar="LISTING_VISION_PORT")] = 50051,
    triton: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a Triton that serves the bundle; else one is started.", envvar="LISTING_VISION_TRITON"
        ),
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="ONNX Runtime in this process, no Triton.")] = False,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to go on serving after health says NOT_SERVING.", envvar="LISTING_VISION_DRAIN_S"
        ),
    ] = 0.5,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C.

    Example: listing-vision serve bundles/grocery --port 50051
    """
    import asyncio

    from serving.server import ServeOptions
    from serving.server import serve as run

    if triton and in_process:
        raise typer.BadParameter("give --triton or --in-process, not both")
    asyncio.run(
        run(ServeOptions(bundle=bundle, host=host, port=port, triton=triton, in_process=in_process, drain_s=drain_s))
    )


@triton_app.command("install")
def install(
    if_supported: Annotated[
        bool, typer.Option("--if-supported", help="On a machine that cannot run it, say so and exit 0.")
    ] = False,
) -> None:
    """Install a Triton server from PyPI wheels into this Python environment (Linux x86-64).

    Example: listing-vision triton install
    """
    from serving.triton_install import install_triton

    try:
        typer.echo(f"Triton: {install_triton().binary}")
    except TritonUnsupported as error:
        if not if_supported:
            raise
        typer.echo(f"No Triton here, the gateway will answer from ONNX Runtime in its own process: {error}")


@triton_app.command("repository")
def repository(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Argument(help="Folder of the model repository.")],
    backend: Annotated[str, typer.Option(help="onnxruntime, pytorch or python.")] = "onnxruntime",
    version: Annotated[int, typer.Option(min=1, help="Triton's version number; never reuse one.")] = 1,
) -> None:
    """Write a Triton model repository from a bundle.

    Example: listing-vision triton repository bundles/grocery models --backend onnxruntime
    """
    from serving.triton_repository import BACKENDS, RepositoryOptions, write_repository
    from vision.bundle import load_bundle

    chosen = next((known for known in BACKENDS if known == backend), None)
    if chosen is None:
        raise typer.BadParameter(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    try:
        path = write_repository(load_bundle(bundle), output, RepositoryOptions(backend=chosen, version=version))
    except FileExistsError as error:
        raise ListingVisionError(str(error)) from error
    typer.echo(f"written: {path}; start it with: tritonserver --model-repository={output}")
