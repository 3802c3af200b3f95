"""The verb `model`: another model for a running service, without an outage."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vision.commands import new_app

__all__ = ["model_app"]

model_app = new_app("Load, promote, roll back and unload models of a running `listing-vision serve`.")

_Port = Annotated[int, typer.Option(help="Of the running gateway on this machine.", envvar="LISTING_VISION_PORT")]
_Release = Annotated[str, typer.Argument(help="A release as `model status` names it.")]


@model_app.command()
def load(bundle: Annotated[Path, typer.Argument(help="A model bundle.")], port: _Port = 50051) -> None:
    """Load a bundle beside what serves, and check its golden photos; callers notice nothing.

    Example: listing-vision model load bundles/new
    """
    release = _ask(port, "load", bundle=str(bundle.resolve()))
    typer.echo(f"{release} is loaded and answers its golden photos; listing-vision model promote {release}")


@model_app.command()
def promote(release: _Release, port: _Port = 50051) -> None:
    """Have a loaded release answer from now on; the one before stays loaded, for `rollback`.

    Example: listing-vision model promote 1f0a9c2e.5d21b7
    """
    _ask(port, "promote", release=release)
    typer.echo(f"{release} answers")


@model_app.command()
def rollback(port: _Port = 50051) -> None:
    """Have the release answer that did before the last `promote`.

    Example: listing-vision model rollback
    """
    typer.echo(f"{_ask(port, 'rollback')} answers")


@model_app.command()
def unload(release: _Release, port: _Port = 50051) -> None:
    """Let go of a release that does not answer.

    Example: listing-vision model unload 1f0a9c2e.5d21b7
    """
    _ask(port, "unload", release=release)
    typer.echo(f"{release} is unloaded")


@model_app.command()
def status(port: _Port = 50051) -> None:
    """What is loaded, and which release answers.

    Example: listing-vision model status
    """
    for found in _ask(port, "status"):
        state = "answers" if found["answers"] else "answered before" if found["before"] else "loaded"
        typer.echo(f"{found['release']:<24} {state:<16} {found['name']:<20} {found['bundle']}")


def _ask(port: int, command: str, **arguments: Any) -> Any:
    from serving.control import ask, control_path

    return ask(control_path(port), command, **arguments)
