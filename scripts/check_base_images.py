"""Refuse a release of images whose bases have no digest.

    python scripts/check_base_images.py

A tag may name another image tomorrow. Digests are set in docker-bake.hcl, or by the variables of the same names.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import hcl2

BAKE_FILE = Path(__file__).resolve().parent.parent / "docker-bake.hcl"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def find_missing_digests(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each base image without a digest."""
    text = lambda value: value.strip('"')  # noqa: E731  # some versions of hcl2 keep the quotes
    found = hcl2.loads(BAKE_FILE.read_text(encoding="utf-8"))["variable"]
    defaults = {text(name): text(body["default"]) for one in found for name, body in one.items()}
    values = {name: environment.get(name, default) for name, default in defaults.items()}
    return [
        f"{name} {values[name]!r} is no sha256:… digest; set it to what this prints: docker buildx imagetools inspect "
        f"{values[name.replace('DIGEST', 'IMAGE')]} --format '{{{{.Manifest.Digest}}}}'"
        for name in ("PYTHON_DIGEST", "TRITON_DIGEST")
        if not _DIGEST.fullmatch(values[name])
    ]


def main() -> None:
    if missing := find_missing_digests(os.environ):
        raise SystemExit(f"{BAKE_FILE.name}: a release needs base images by digest:\n" + "\n".join(missing))


if __name__ == "__main__":
    main()
