"""The verb `model`: another model for a running service, without an outage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vision.errors import ListingVisionError
from vision.runtime.cli import create_cli_app

__all__ = ["model_app"]

model_app = create_cli_app("Load, try, promote, roll back and unload models of a running `listing-vision serve`.")

_Port = Annotated[int, typer.Option(help="Port of the running `serve` on this machine.", envvar="LISTING_VISION_PORT")]
_OptionalRelease = Annotated[str | None, typer.Argument(help="A release, as `model status` prints it.")]
_Off = Annotated[bool, typer.Option("--off", help="Stop; the release stays loaded.")]
_Release = Annotated[str, typer.Argument(help="A release, as `model status` prints it.")]


@model_app.command()
def load(bundle: Annotated[Path, typer.Argument(help="A model bundle.")], port: _Port = 50051) -> None:
    """Load a bundle beside the serving ones and check its golden photos, without a failed call.

    Example: listing-vision model load bundles/new
    """
    release = _send_command(port, "load", bundle=str(bundle.resolve()))
    typer.echo(f"{release} is loaded and passes its golden photos; next: listing-vision model promote {release}")


@model_app.command()
def promote(release: _Release, port: _Port = 50051) -> None:
    """Make a loaded release the stable one; the previous one stays loaded, for `rollback`.

    Example: listing-vision model promote 1f0a9c2e.5d21b7
    """
    _send_command(port, "promote", release=release)
    typer.echo(f"{release} is the stable release")


@model_app.command()
def rollback(port: _Port = 50051) -> None:
    """Make the release stable that was so before the last `promote`.

    Example: listing-vision model rollback
    """
    typer.echo(f"{_send_command(port, 'rollback')} is the stable release")


@model_app.command()
def canary(
    release: _OptionalRelease = None,
    share: Annotated[float, typer.Option(help="Share of the listings, above 0 and at most 1, by their ids.")] = 0.05,
    off: _Off = False,
    port: _Port = 50051,
) -> None:
    """Send a share of the listings to a loaded release; an unhealthy canary is removed automatically.

    A larger share contains all listings of a smaller one, so that no suggestion changes back.

    Example: listing-vision model canary 1f0a9c2e.5d21b7 --share 0.05
    """
    if _set_or_clear(port, "canary", release, share, off=off):
        typer.echo(f"{release} gets {share:.4g} of the listings; to stop: listing-vision model canary --off")
    else:
        typer.echo("the canary is off")


@model_app.command()
def shadow(
    release: _OptionalRelease = None,
    share: Annotated[float, typer.Option(help="Share of the listings, above 0 and at most 1, by their ids.")] = 1.0,
    off: _Off = False,
    port: _Port = 50051,
) -> None:
    """Record a loaded release's suggestions for a share of the listings; none is returned. Needs `serve --outcomes`.

    It runs after the response is sent, and only while the machine is idle.

    Example: listing-vision model shadow 1f0a9c2e.5d21b7 --share 0.2
    """
    if _set_or_clear(port, "shadow", release, share, off=off):
        typer.echo(f"{release} shadows {share:.4g} of the listings; to stop: listing-vision model shadow --off")
    else:
        typer.echo("the shadow is off")


@model_app.command()
def unload(release: _Release, port: _Port = 50051) -> None:
    """Unload a release that gets no listings.

    Example: listing-vision model unload 1f0a9c2e.5d21b7
    """
    _send_command(port, "unload", release=release)
    typer.echo(f"{release} is unloaded")


@model_app.command()
def status(port: _Port = 50051) -> None:
    """Print the loaded releases and the role of each.

    Example: listing-vision model status
    """
    for found in _send_command(port, "status"):
        typer.echo(f"{found['release']:<24} {found['state']:<16} {found['name']:<20} {found['bundle']}")
        if found["removal_reason"]:
            typer.echo(f"  was removed as a canary: {found['removal_reason']}")


def _set_or_clear(port: int, purpose: str, release: str | None, share: float, *, off: bool) -> bool:
    if off == (release is not None):
        raise typer.BadParameter("give a release or --off")
    if off:
        _send_command(port, f"clear_{purpose}")
    else:
        _send_command(port, f"set_{purpose}", release=release, share=share)
    return not off


def _send_command(port: int, command: str, **arguments: Any) -> Any:
    from serving.processes.control import ControlTimeout, ControlUnavailable, send_command
    from serving.processes.sockets import supervisor_control_path

    try:
        return send_command(supervisor_control_path(port), command, **arguments)
    except ControlTimeout as error:
        raise ListingVisionError(f"the supervisor of port {port} may still be working: {error}") from error
    except ControlUnavailable as error:
        raise ListingVisionError(
            f"no supervisor responds: {error}; give the --port that `listing-vision serve` listens on"
        ) from error
