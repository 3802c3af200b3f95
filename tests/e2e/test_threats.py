"""Every threat of docs/threats.md has a defence, and tests or benchmarks that exist."""

import re

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "threats.md"
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][1:]


def exists(name: str) -> bool:
    """Return whether a name of the last column is a test, a file of tests or a benchmark."""
    if module := re.fullmatch(r"python -m benchmarks\.(\w+)", name):
        return (ROOT / "benchmarks" / f"{module[1]}.py").is_file()
    return name in TESTS or (name.startswith("tests/") and (ROOT / name).is_file())


def test_the_page_has_threats():
    assert len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_threat_names_its_defence_and_tests_that_exist(row):
    _, defence, shown_by = row
    assert defence
    names = re.findall(r"`([^`]+)`", shown_by)
    assert names
    assert [name for name in names if not exists(name)] == []
