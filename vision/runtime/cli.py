"""Shared by every command line: logging, and one line for a failure."""

import datetime
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer
import typer.main

from vision.errors import ListingVisionError
from vision.runtime.cpus import set_thread_policy
from vision.runtime.progress import Heartbeat

__all__ = ["EXIT_INTERRUPTED", "LOG_FIELDS", "create_cli_app", "run_app", "run_command"]

EXIT_INTERRUPTED = 75
"""Exit status of a command that a signal stopped and that resumes when it is repeated (EX_TEMPFAIL of sysexits.h)."""
LOG_FIELDS = ("request_id", "caller", "trace_id", "span_id")
"""Fields that a log record may carry (`extra`) and that a JSON line then contains."""
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _JsonLines(logging.Formatter):
    """Format one JSON object per line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: found for name in LOG_FIELDS if (found := getattr(record, name, ""))},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def create_cli_app(help: str) -> typer.Typer:
    return typer.Typer(help=help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run_command(command: Callable[..., Any]) -> None:
    """Run the one command of a program that other programs start; as `run_app`, without a heartbeat."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    _run(app)


def run_app(app: typer.Typer) -> None:
    """Run the command line; exits 0 on success, 1 on a failure, 2 on a usage error.

    A failure is one message on stderr; `--debug` anywhere on the line adds the traceback. A command that is silent is
    named on stderr, with its time, after the first second and then every ten. Of several ranks the first one does.
    """
    command = typer.main.get_command(app)
    if os.environ.get("RANK", "0") != "0":
        _run(command)
        return
    with Heartbeat(_name_verb(command, sys.argv[1:])):
        _run(command)


def _name_verb(command: Any, words: Sequence[str]) -> str:
    verbs: list[str] = []
    for word in words:
        if word.startswith("-"):
            continue
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        verbs.append(word)
    return " ".join(verbs) or "running"


def _run(app: Callable[[], Any]) -> None:
    set_thread_policy()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    handler = logging.StreamHandler(sys.stderr)
    as_json = os.environ.get("LISTING_VISION_LOG_FORMAT") == "json"
    if as_json:
        # gRPC's C core writes lines of its own to stderr. It reads this when it is loaded, here or in a child process.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter(_LOG_FORMAT))
    level = logging.DEBUG if debug else os.environ.get("LISTING_VISION_LOG", "INFO")
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("PIL", "asyncio", "grpc", "onnxscript", "onnx_ir", "torch.onnx", "httpx", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except (ListingVisionError, OSError) as error:
        _exit_with_error(str(error), debug)
    except ModuleNotFoundError as error:
        _exit_with_error(
            f"this needs the package {error.name!r}; install the extra that brings it: listing-vision[train] to make "
            "models, [gateway] to serve, [local] to answer in this process, [signing] for signed bundles",
            debug,
        )
    except Exception as error:
        _exit_with_error(f"unexpected {type(error).__name__}: {error} (--debug shows where)", debug)


def _exit_with_error(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"listing-vision: {message}", file=sys.stderr)
    raise SystemExit(1)
