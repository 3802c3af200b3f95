"""The verbs of planning: `plan capacity`, `plan measure`."""

from pathlib import Path
from typing import Annotated

import typer

from serving.capacity import DEFAULT_GATEWAY_MS
from vision.runtime.cli import create_cli_app
from vision.runtime.wording import format_count

__all__ = ["plan_app"]

plan_app = create_cli_app("Compute how many machines a load needs.")


@plan_app.command("capacity")
def capacity(
    profile: Annotated[Path, typer.Option(help="Profile that `plan measure` wrote.")],
    listings_per_s: Annotated[float, typer.Option(min=0.01, help="Average arrival rate.")],
    p99_ms: Annotated[float, typer.Option(min=1, help="Highest acceptable 99th percentile of latency.")],
    photos_per_listing: Annotated[float, typer.Option(min=1, max=20, help="Average number of photos.")] = 4.0,
    cores_per_gateway: Annotated[int, typer.Option(min=1, help="Cores of one machine or pod.")] = 8,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum batch of Triton's dynamic batcher.")] = 64,
    queue_delay_ms: Annotated[float, typer.Option(min=0, help="Time that a batch waits for more photos.")] = 2.0,
) -> None:
    """Compute the fewest gateways and model instances that keep a latency, by simulation.

    Example: listing-vision plan capacity --profile profile.json --listings-per-s 1000 --p99-ms 300
    """
    from serving.capacity.planner import plan
    from serving.capacity.profile import Profile
    from serving.capacity.simulation import Load, Service

    costs = Profile.load(profile)
    service = Service(num_cores=1, num_instances=1, max_batch=max_batch, queue_delay_ms=queue_delay_ms)
    load = Load(listings_per_s=listings_per_s, photos_per_listing=photos_per_listing)
    found = plan(costs, load, p99_ms=p99_ms, service=service)
    made, out = found.estimate, found.estimate.simulation
    gateways = -(-found.service.num_cores // cores_per_gateway)
    typer.echo(f"costs measured on {costs.machine}")
    cores = f"{format_count(found.service.num_cores, 'core')}, {out.core_utilisation:.0%} busy"
    typer.echo(f"gateways   {gateways} of {format_count(cores_per_gateway, 'core')} ({cores})")
    batches = f"{out.instance_utilisation:.0%} busy, {out.mean_batch:.1f} photos a batch"
    typer.echo(f"instances  {found.service.num_instances} of the model ({batches})")
    typer.echo(
        f"p50 {made.p50_ms:.0f} ms, p99 {made.p99_ms:.0f} ± {made.p99_error_ms:.0f} ms; most used: {found.bottleneck}"
    )


@plan_app.command("measure")
def measure(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    photos: Annotated[Path, typer.Option(help="Folder of some dozens of typical photos.")],
    output: Annotated[Path, typer.Option(help="File for the profile, JSON.")],
    gateway_ms: Annotated[
        float,
        typer.Option(
            min=0,
            help="Core time per photo in a gateway beside decoding. Default: of listings of one photo; "
            "`benchmarks.serving` measures it (`cpu_ms_per_photo` of the gateway's processes).",
        ),
    ] = DEFAULT_GATEWAY_MS,
) -> None:
    """Measure what decoding and the model cost on one core of this machine, and what its cores can do at most.

    Example: listing-vision plan measure bundles/grocery --photos photos --output profile.json
    """
    from serving.capacity.profile import measure_profile
    from vision.bundle import load_bundle
    from vision.runtime.cpus import count_usable_cores

    measured = measure_profile(load_bundle(bundle), photos, gateway_ms=gateway_ms)
    measured.save(output)
    costs = f"decode {measured.decode_ms:.1f} ms, model {measured.model_ms[1]:.1f} ms"
    typer.echo(f"{costs} a photo on one core; written: {output}")
    cores = count_usable_cores()
    with_gpu, alone = (measured.compute_max_photos_per_s(cores, model_on_cores=on_cores) for on_cores in (False, True))
    typer.echo(
        f"the {cores} usable cores limit this machine to {with_gpu:.0f} photos/s with the model on a GPU, whatever the "
        f"GPU could do, and to {alone:.0f} photos/s with the model on them too"
    )
