"""Fail when the newest release in CHANGELOG.md is not the package's version."""

import re
from pathlib import Path

import vision

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def check_version() -> None:
    """Raises SystemExit: they differ."""
    releases = re.findall(r"^## (\d+\.\d+\.\d+)", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    if not releases or releases[0] != vision.__version__:
        raise SystemExit(f"CHANGELOG.md's newest release is {releases[:1]}, the package is {vision.__version__}")


def main() -> None:
    check_version()
    print(f"version: {vision.__version__}, as in CHANGELOG.md")


if __name__ == "__main__":
    main()
