"""The verb `serve`; its flags are the fields of `serving.config.ServeOptions`."""

import asyncio
import inspect
import signal
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from serving.config import ServeOptions, find_conflict

__all__ = ["serve"]


def _take_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags and environment variables that `ServeOptions` declares."""
    hints = get_type_hints(ServeOptions, include_extras=True)
    parameters = []
    for field in fields(ServeOptions):
        if get_origin(hints[field.name]) is not Annotated:
            continue
        kind, flag = get_args(hints[field.name])
        flag.envvar = flag.envvar or f"LISTING_VISION_{field.name.upper()}"
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        if get_origin(kind) is tuple:  # one text on the command line, which the flag's callback takes apart
            kind, default = str | None, None
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, flag]
            )
        )
    vars(verb)["__signature__"] = inspect.Signature(parameters)
    return verb


@_take_flags
def serve(**flags: Any) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C; SIGHUP replaces the gateway processes one by one.

    Example: listing-vision serve bundles/grocery --port 50051

    `listing-vision tune triton --help`: find the best settings of its Triton by measurement.
    """
    from serving.observability.tracing import read_standard_endpoint

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there are processes to replace; the default would end this one
    from serving.supervisor.supervisor import serve as run
    from vision.runtime.lifetime import keep_freed_memory_in_children, raise_descriptor_limit
    from vision.runtime.repeated_lines import limit_repeated_lines

    options = ServeOptions(**flags)
    if conflict := find_conflict(options):
        raise typer.BadParameter(conflict)
    limit_repeated_lines()
    raise_descriptor_limit()
    keep_freed_memory_in_children()
    asyncio.run(run(replace(options, otlp_endpoint=options.otlp_endpoint or read_standard_endpoint())))
