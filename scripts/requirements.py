"""Prints what the project and the named extras need, a requirement a line.

    python scripts/requirements.py gateway traces

An image that installs these first, and the project after them, changes by a small layer when only the code has changed.
"""

import sys
import tomllib
from pathlib import Path


def main(*extras: str) -> None:
    project = tomllib.loads(_pyproject().read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in known]
    if unknown:
        raise SystemExit(f"no extra {', '.join(unknown)}; there is {', '.join(known)}")
    print("\n".join(sorted({*project["dependencies"], *(line for extra in extras for line in known[extra])})))


def _pyproject() -> Path:
    """Beside this file, as in an image, or above it, as in a clone."""
    here = Path(__file__).resolve().parent
    beside = here / "pyproject.toml"
    return beside if beside.is_file() else here.parent / "pyproject.toml"


if __name__ == "__main__":
    main(*sys.argv[1:])
