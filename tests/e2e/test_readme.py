"""What the README tells a newcomer to type exists."""

import re
import shlex

import pytest
import typer.main

from listing_vision.cli import app
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
LINES = re.findall(r"^(?:\.venv/bin/)?listing-vision (.+)$", CODE, re.MULTILINE)


def test_it_shows_the_verbs_of_the_work():
    assert {line.split()[0] for line in LINES} >= {"data", "train", "export", "evaluate", "serve", "classify", "triton"}


@pytest.mark.parametrize("line", LINES)
def test_each_command_line_parses(line):
    words = shlex.split(line.split("  #")[0])
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    assert command.make_context(command.name, words, resilient_parsing=False).params


def test_each_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test", "serve"} <= named
    for target in named:
        if target.startswith("bench-"):
            continue
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"make bench-(\w+)", README):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file() or (ROOT / "benchmarks" / name).is_dir()


def test_every_linked_page_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
