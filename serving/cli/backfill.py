"""The verbs of `backfill`: run, retry, select, status, verify, diff."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.config import RequireSignature
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

if TYPE_CHECKING:
    from serving.backfill.job import Job
    from serving.backfill.local_engine import BackfillEngine, EngineOptions
    from serving.backfill.shutdown import GracefulShutdown
    from vision.bundle import Bundle

__all__ = ["backfill_app"]

_Output = Annotated[str, typer.Argument(help="A backfill's output: a folder, or any fsspec URL.", metavar="URL")]
_Model = Annotated[Path, typer.Option("--model", help="A model bundle.")]
_Target = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a running gateway or Triton that serves the bundle. Default: this machine."),
]
_Rate = Annotated[float | None, typer.Option(min=0.1, help="Maximum photos per second, with --target.")]
_Cores = Annotated[int | None, typer.Option(min=1, help="Cores to use. Default: all.")]
_Isolate = Annotated[bool, typer.Option(help="Decode photos in separate processes, which a broken photo may crash.")]
_PhotoTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds that a photo's server may take, all attempts together.")
]
_Rendition = Annotated[
    int | None,
    typer.Option(
        "--rendition",
        min=16,
        help="Short side in pixels, if the photos are copies of that size; fields are prefilled if `calibrate "
        "--rendition` has certified the bundle for them. Default: originals.",
    ),
]
_MaxErrorShare = Annotated[
    float, typer.Option(min=0, max=1, help="Stop when a larger share of the last thousand photos cannot be used.")
]


backfill_app = create_cli_app("Classify every stored listing, and inspect the result.")


@backfill_app.command("run")
def run(
    manifest: Annotated[
        str, typer.Argument(help="Parquet, CSV or JSON Lines: a file, a folder or a pattern; any fsspec URL.")
    ],
    model: _Model,
    output: Annotated[str, typer.Option(help="Folder or fsspec URL of the results.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete an existing output and start again.")] = False,
    target: _Target = None,
    rate: _Rate = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster, or with Ray on this machine.")] = False,
    ray_address: Annotated[str | None, typer.Option(help="Address of the Ray cluster; implies --ray.")] = None,
    max_error_share: _MaxErrorShare = 0.1,
    top_k: Annotated[
        int, typer.Option(min=0, max=100, help="Most probable leaf categories to write beside the suggestion.")
    ] = 0,
    embedding: Annotated[bool, typer.Option("--embedding", help="Write each listing's mean embedding.")] = False,
    listings_per_shard: Annotated[
        int, typer.Option(min=1, help="Listings per shard: the most work that a kill can lose.")
    ] = 200,
    cores: _Cores = None,
    isolate: _Isolate = True,
    photo_timeout_s: _PhotoTimeout = 30.0,
    rendition_px: _Rendition = None,
    require_signature: RequireSignature = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port on which to serve Prometheus metrics.")] = None,
    compare_with: Annotated[
        str | None, typer.Option(help="Output of an earlier backfill to compare with at the end.")
    ] = None,
) -> None:
    """Classify every listing of a manifest. Repeat the same command to resume after any interruption.

    Example: listing-vision backfill run listings.parquet --model bundles/grocery --output backfills/2026-11

    SIGTERM or Ctrl-C stops it within 20 seconds with exit status 75.
    """
    from serving.backfill import inspection
    from serving.backfill.job import LOCK_PATH
    from serving.backfill.local_engine import EngineOptions
    from serving.backfill.progress import serve_metrics
    from serving.backfill.run import BackfillRequest, open_or_create_job
    from serving.backfill.run import run as run_job
    from serving.backfill.shutdown import GracefulShutdown
    from serving.storage import Store
    from vision.bundle import load_bundle

    is_on_ray = ray or ray_address is not None
    _check_flags(is_on_ray=is_on_ray, target=target, cores=cores, rate=rate)
    registry = None if metrics_port is None else serve_metrics(metrics_port)
    store, shutdown = Store(output), GracefulShutdown()
    options = EngineOptions(
        stop=shutdown.abort, isolate=isolate, photo_timeout_s=photo_timeout_s, rendition_px=rendition_px
    )
    request = BackfillRequest(
        manifest=manifest,
        listings_per_shard=listings_per_shard,
        top_k=top_k,
        embedding=embedding,
        overwrite=overwrite,
    )
    with _exit_when_interrupted(shutdown), store.lock(LOCK_PATH):
        bundle = load_bundle(model, public_key=require_signature)
        if is_on_ray:
            engine = _create_ray_engine(model, options, address=ray_address, public_key=require_signature)
        else:
            engine = _create_engine(bundle, options, target=target, rate=rate, cores=cores)
        try:
            job = open_or_create_job(store, request, engine, typer.echo)
            typer.echo(_describe_size(job))
            progress = run_job(
                store,
                job,
                engine,
                max_error_share=max_error_share,
                shutdown=shutdown,
                notify=typer.echo,
                registry=registry,
            )
        finally:
            engine.close()
    typer.echo(f"{progress}\n{inspection.status(store)}\n\n{inspection.describe_distribution(store)}")
    if compare_with:
        typer.echo(f"\nagainst {compare_with}:\n{inspection.diff(Store(compare_with), store)}")


@backfill_app.command()
def retry(
    output: _Output,
    model: _Model,
    reason: Annotated[
        list[str] | None, typer.Option(help="Reasons of the dead letters to retry. Default: all.")
    ] = None,
    target: _Target = None,
    rate: _Rate = None,
    max_error_share: _MaxErrorShare = 1.0,
    cores: _Cores = None,
    isolate: _Isolate = True,
    photo_timeout_s: _PhotoTimeout = 30.0,
    rendition_px: _Rendition = None,
    require_signature: RequireSignature = None,
) -> None:
    """Classify the listings of dead letters again and replace their rows.

    Example: listing-vision backfill retry backfills/2026-11 --model bundles/grocery --reason PHOTO_READ_FAILED
    """
    from serving.backfill.job import LOCK_PATH, read_job
    from serving.backfill.local_engine import EngineOptions
    from serving.backfill.run import retry as retry_job
    from serving.backfill.shutdown import GracefulShutdown
    from serving.storage import Store
    from vision.bundle import load_bundle

    store, shutdown = Store(output), GracefulShutdown()
    options = EngineOptions(
        stop=shutdown.abort, isolate=isolate, photo_timeout_s=photo_timeout_s, rendition_px=rendition_px
    )
    job = read_job(store)
    with _exit_when_interrupted(shutdown), store.lock(LOCK_PATH):
        bundle = load_bundle(model, public_key=require_signature)
        engine = _create_engine(bundle, options, target=target, rate=rate, cores=cores)
        try:
            job.require_match({"model": engine.versions})
            found = retry_job(
                store,
                job,
                engine,
                reasons=reason or (),
                max_error_share=max_error_share,
                shutdown=shutdown,
            )
        finally:
            engine.close()
    typer.echo(
        f"{found['listings']} listings classified again: {found['photos_recovered']} photos recovered, "
        f"{found['photos_unusable']} still cannot be used"
    )


@backfill_app.command()
def select(
    source: _Output,
    model: _Model,
    labels: Annotated[str, typer.Option(help="Manifest with labels of a random sample of the backfill's listings.")],
    output: Annotated[str, typer.Option(help="Folder or fsspec URL of the new tables.")],
    alpha_category: Annotated[
        float, typer.Option(help="Highest share of wrong categories among those filled to a depth, on average.")
    ] = 0.05,
    alpha_brand: Annotated[float, typer.Option(help="Highest share of wrong brands among filled ones, on average.")] = (
        0.02
    ),
    category: Annotated[bool, typer.Option(help="Fill categories.")] = True,
    brand: Annotated[bool, typer.Option(help="Fill brands.")] = True,
    require_signature: RequireSignature = None,
) -> None:
    """Fill more rows of a finished backfill, with a weaker guarantee: few are wrong on average, not certified.

    Repeat the same command to resume after any interruption.

    Example: listing-vision backfill select backfills/1 --model bundles/grocery --labels s.csv --output backfills/1s
    """
    from serving.backfill import selection
    from serving.backfill.job import LOCK_PATH
    from serving.backfill.shutdown import GracefulShutdown
    from serving.storage import Store
    from vision.bundle import load_bundle

    target, shutdown = Store(output), GracefulShutdown()
    request = selection.SelectionRequest(
        labels=labels,
        alpha_category=alpha_category if category else None,
        alpha_brand=alpha_brand if brand else None,
    )
    with _exit_when_interrupted(shutdown), target.lock(LOCK_PATH):
        bundle = load_bundle(model, public_key=require_signature)
        summary = selection.select(Store(source), target, bundle, request, shutdown=shutdown, notify=typer.echo)
    typer.echo(str(summary))


@backfill_app.command()
def status(output: _Output) -> None:
    """Print the progress of a backfill.

    Example: listing-vision backfill status backfills/2026-11
    """
    from serving.backfill import inspection
    from serving.storage import Store

    typer.echo(str(inspection.status(Store(output))))


@backfill_app.command()
def verify(output: _Output) -> None:
    """Check that every listing has exactly one row and every file is intact; exits 1 if not.

    Example: listing-vision backfill verify backfills/2026-11
    """
    from serving.backfill import inspection
    from serving.storage import Store

    found = inspection.verify(Store(output))
    typer.echo(str(found))
    if not found.is_valid:
        raise typer.Exit(1)


@backfill_app.command()
def diff(
    old: Annotated[str, typer.Argument(help="Output of the earlier backfill.")],
    new: Annotated[str, typer.Argument(help="Output of the later one.")],
    examples: Annotated[int, typer.Option(min=0, help="Changed listings to show.")] = 10,
) -> None:
    """Print how many suggestions changed between two backfills, and which.

    Example: listing-vision backfill diff backfills/2026-05 backfills/2026-11
    """
    from serving.backfill import inspection
    from serving.storage import Store

    typer.echo(str(inspection.diff(Store(old), Store(new), num_examples=examples)))


def _check_flags(*, is_on_ray: bool, target: str | None, cores: int | None, rate: float | None) -> None:
    """Raises BadParameter: flags that exclude or need each other."""
    if is_on_ray and (target or cores):
        raise typer.BadParameter(
            "--ray takes its cores from the cluster and its model from the bundle; drop --target and --cores"
        )
    if rate and not target:
        raise typer.BadParameter("--rate protects live traffic and needs --target")


def _create_engine(
    bundle: "Bundle", options: "EngineOptions", *, target: str | None, rate: float | None, cores: int | None
) -> "BackfillEngine":
    from serving.backfill.local_engine import create_local_engine

    if not target:
        return create_local_engine(bundle, options, num_cores=cores)
    from serving.backfill.remote_engine import create_remote_engine

    return create_remote_engine(target, bundle, options, photos_per_s=rate)


def _create_ray_engine(
    model: Path, options: "EngineOptions", *, address: str | None, public_key: Path | None
) -> "BackfillEngine":
    from serving.backfill.ray_engine import create_ray_engine

    return create_ray_engine(model, options, address=address, public_key=public_key)


def _describe_size(job: "Job") -> str:
    counts = ((job.num_listings, "listing"), (job.num_photos, "photo"), (job.num_shards, "shard"))
    return ", ".join(format_count(num, noun) for num, noun in counts)


@contextmanager
def _exit_when_interrupted(shutdown: "GracefulShutdown") -> Iterator[None]:
    """Exit 75 if a signal interrupts the job."""
    from serving.backfill.shutdown import Interrupted
    from vision.runtime.cli import EXIT_INTERRUPTED

    try:
        with shutdown.handle_signals():
            yield
    except Interrupted as stopped:
        typer.echo(f"stopped: {stopped}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from stopped
