"""The commands, make targets and links of README and docs exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from listing_vision.cli import app
from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def list_command_lines(page: Path) -> list[str]:
    """Return the arguments of every `listing-vision` line of a page's code blocks."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"^(?:    )?(?:\.venv/bin/)?listing-vision (.+)$", text, re.MULTILINE)
    return [re.split(r"\s+#|\s+&", line)[0] for line in found]


def list_verbs(command: typer.core.TyperCommand, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if not hasattr(command, "commands"):
        return {path}
    return set().union(*(list_verbs(child, (*path, name)) for name, child in command.commands.items()))


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_leads_from_photos_to_a_served_model():
    verbs = {line.split()[0] for line in list_command_lines(README)}
    assert verbs >= {"data", "train", "export", "evaluate", "serve", "classify", "backfill"}


def test_the_page_of_commands_has_every_verb():
    shown = {tuple(line.split()) for line in list_command_lines(ROOT / "docs" / "commands.md")}
    verbs = list_verbs(typer.main.get_command(app)) - {("version",)}
    missing = {verb for verb in verbs if not any(line[: len(verb)] == verb for line in shown)}
    assert not missing


@pytest.mark.parametrize(
    ("page", "line"), [(page.name, line) for page in PAGES for line in dict.fromkeys(list_command_lines(page))]
)
def test_each_command_line_parses(page, line):
    words = shlex.split(line)
    if words[0].isupper() or words[1:2] == ["…"]:
        return  # a pattern, such as `listing-vision VERB --help`
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    assert command.make_context(command.name, words, resilient_parsing=False).params or not command.params


def test_each_make_target_exists():
    makefile, readme = (ROOT / "Makefile").read_text(), README.read_text(encoding="utf-8")
    assert {"demo", "test", "serve"} <= set(re.findall(r"make ([a-z-]+)", readme))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"make bench-(\w+)", text):
            assert (ROOT / "benchmarks" / f"{name}.py").is_file() or (ROOT / "benchmarks" / name).is_dir(), page
        for target in re.findall(r"[`\n]make ([a-z-]+)", text):
            if not target.startswith("bench-"):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_page_and_a_heading(page):
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if path.startswith("http"):
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in list_anchors(target), f"{path}#{anchor}"


def test_every_named_file_exists():
    for page in PAGES:
        if page.name in ("log.md", "benchmarks.md"):
            continue
        for path in re.findall(
            r"`((?:vision|training|serving|listing_vision|tests|deploy|scripts|docs)/[\w./]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), (page.name, path)


def test_the_page_of_the_architecture_has_every_folder():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {
        path.parent for name in ("vision", "training", "serving") for path in (ROOT / name).rglob("__init__.py")
    }
    for package in packages:
        parts = package.relative_to(ROOT).parts[:2]
        assert f"`{'/'.join(parts)}/`" in page, package
