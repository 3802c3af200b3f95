"""Print the requirements of the project and the named extras, one per line.

    python scripts/requirements.py gateway traces

An image that installs these before the project changes only its last layer when the code changes.
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
    """Return the path of pyproject.toml: beside this file in an image, above it in a clone."""
    here = Path(__file__).resolve().parent
    beside = here / "pyproject.toml"
    return beside if beside.is_file() else here.parent / "pyproject.toml"


if __name__ == "__main__":
    main(*sys.argv[1:])
