"""The verbs of Triton: `triton install`, `triton repository`, `tune triton`."""

from pathlib import Path
from typing import Annotated

import typer

from serving.config import RequireSignature
from serving.errors import TritonUnsupported
from vision.errors import ListingVisionError
from vision.runtime.cli import create_cli_app

__all__ = ["triton_app", "tune"]

triton_app = create_cli_app("Install a Triton server, or write a model repository for one.")


@triton_app.command("install")
def install(
    if_supported: Annotated[
        bool, typer.Option("--if-supported", help="Exit 0 with a message on a machine that cannot run it.")
    ] = False,
) -> None:
    """Install a Triton server from PyPI wheels into this Python environment (Linux x86-64).

    Example: listing-vision triton install
    """
    from serving.triton.install import install_triton

    try:
        typer.echo(f"Triton: {install_triton().binary}")
    except TritonUnsupported as error:
        if not if_supported:
            raise
        typer.echo(
            f"No Triton on this machine; the gateway will run the model with ONNX Runtime in its own process: {error}"
        )


@triton_app.command("repository")
def repository(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Argument(help="Folder of the model repository.")],
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt, pytorch, python or python-gpu.")] = "onnxruntime",
    plan: Annotated[
        Path | None,
        typer.Option(help="model.plan for --backend tensorrt; without it the command that builds one is printed."),
    ] = None,
    version: Annotated[int, typer.Option(min=1, help="Triton's version number; never reuse one.")] = 1,
    canary: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle, written too, as listing_vision_canary; for `serve --canary`.",
            envvar="LISTING_VISION_CANARY",
        ),
    ] = None,
    shadow: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle, written too, as listing_vision_shadow; for `serve --shadow`.",
            envvar="LISTING_VISION_SHADOW",
        ),
    ] = None,
    gpu_decoder: Annotated[
        str | None,
        typer.Option(help="Library that decodes for --backend python-gpu: torchvision (default) or torchcodec."),
    ] = None,
    require_signature: RequireSignature = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace existing models, for a start step that may run again.")
    ] = False,
) -> None:
    """Write a Triton model repository from a bundle.

    Example: listing-vision triton repository bundles/grocery models --backend onnxruntime
    """
    from serving.inference.model_names import CANARY_MODEL_NAME, MODEL_NAME, SHADOW_MODEL_NAME
    from serving.triton.config import BACKENDS, GPU_DECODERS, RepositoryOptions
    from serving.triton.repository import remove_model, write_repository
    from vision.bundle import load_bundle

    chosen = next((known for known in BACKENDS if known == backend), None)
    if chosen is None:
        raise typer.BadParameter(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    decoder = next((known for known in GPU_DECODERS if known == (gpu_decoder or GPU_DECODERS[0])), None)
    if decoder is None:
        raise typer.BadParameter(f"GPU decoder {gpu_decoder!r} is not one of {', '.join(GPU_DECODERS)}")
    if gpu_decoder and chosen != "python-gpu":
        raise typer.BadParameter(f"--gpu-decoder is for --backend python-gpu, not for {chosen}")
    if plan and (canary or shadow):
        raise typer.BadParameter("--plan belongs to one model; write canary and shadow into separate folders")
    folders = {MODEL_NAME: bundle, CANARY_MODEL_NAME: canary, SHADOW_MODEL_NAME: shadow}
    bundles = {name: load_bundle(folder, public_key=require_signature) for name, folder in folders.items() if folder}
    for name, loaded in bundles.items():
        if replace:
            remove_model(output, name)
        options = RepositoryOptions(backend=chosen, version=version, model_name=name, plan=plan, gpu_decoder=decoder)
        try:
            path = write_repository(loaded, output, options)
        except FileExistsError as error:
            raise ListingVisionError(str(error)) from error
        typer.echo(f"written: {path}")
    typer.echo(f"start it with: tritonserver --model-repository={output}")


def tune(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Option(help="Folder of the tuned model repository; must not exist.")],
    p99_ms: Annotated[float, typer.Option(min=1, help="Highest acceptable 99th percentile of latency.")] = 500,
    callers: Annotated[int, typer.Option(min=1, help="Concurrent callers.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each measurement.")] = 5,
) -> None:
    """Find the instances, batch size and queue delay of Triton with the highest throughput within a latency budget.

    Measures on this machine. Writes a model repository with the best settings, and in it tuning.json for
    `serve --tuning`.

    Example: listing-vision tune triton bundles/grocery --p99-ms 300 --output models/grocery
    """
    from serving.capacity import triton_sweep
    from serving.triton.install import find_triton
    from serving.triton.repository import write_repository
    from vision.bundle import load_bundle, require_new_folder

    require_new_folder(output)
    loaded = load_bundle(bundle)
    budget = triton_sweep.Budget(p99_ms=p99_ms, callers=callers, seconds=seconds)
    best, measured = triton_sweep.tune(
        budget,
        triton_sweep.create_measure(loaded, find_triton(), budget),
        on_measurement=lambda m: typer.echo(triton_sweep.format_table([m], budget).splitlines()[1]),
    )
    write_repository(loaded, output, best.options)
    path = output / "tuning.json"
    triton_sweep.write_tuning(path, best, measured, budget)
    typer.echo("\nbest:\n" + triton_sweep.format_table([best], budget))
    typer.echo(f"written: {output}; serve with it: listing-vision serve {bundle} --tuning {path}")
