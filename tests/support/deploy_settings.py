"""What the project's programs take from their environment and command line; nothing here is a test."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import typer.main

from listing_vision.cli import app
from tests.conftest import ROOT


def find_known_variables() -> set[str]:
    """Every LISTING_VISION_* that some code of the project reads."""
    command: click.Command = typer.main.get_command(app).commands["serve"]
    sources = [path for package in ("listing_vision", "serving", "training", "vision") for path in _modules(package)]
    literal = re.findall(r'"(LISTING_VISION_[A-Z_]+)"', "\n".join(path.read_text("utf-8") for path in sources))
    return {*literal, *(str(parameter.envvar) for parameter in command.params if parameter.envvar)}


def _modules(package: str) -> Iterator[Any]:
    return (ROOT / package).rglob("*.py")


def parse_options(words: Sequence[str], environment: Mapping[str, str], monkeypatch) -> dict[str, Any]:
    """The options of `listing-vision WORDS` as its own parser understands them in that environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command: click.Command = typer.main.get_command(app)
    left = list(words)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    with command.make_context(command.name, left) as context:
        return context.params


def parse_command_line(line: str, monkeypatch) -> dict[str, Any]:
    program, *words = shlex.split(line)
    assert program == "listing-vision"
    return parse_options(words, {}, monkeypatch)
