"""Fail when CHANGELOG.md or an image's tag, in docker-bake.hcl or deploy/, has another version than the package."""

import re
from pathlib import Path

import vision

ROOT = Path(__file__).resolve().parent.parent
_TAG = re.compile(r'newTag: (\S+)|\$\{VERSION:-([^}]+)\}|^variable "VERSION" \{\s+default = "([^"]+)"', re.MULTILINE)


def find_other_versions(version: str) -> list[str]:
    """Return the files that name another version as the newest release or as an image's tag, a sentence each."""
    releases = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {"CHANGELOG.md": {*releases[:1]} or {"no version"}}
    for path in (ROOT / "docker-bake.hcl", *sorted((ROOT / "deploy").rglob("*.yaml"))):
        named[str(path.relative_to(ROOT))] = {"".join(found) for found in _TAG.findall(path.read_text())}
    return [
        f"{name} has {other}, the package is {version}" for name, found in named.items() for other in found - {version}
    ]


def check_version() -> None:
    """Raises SystemExit: they differ."""
    if others := find_other_versions(vision.__version__):
        raise SystemExit("\n".join(others))


def main() -> None:
    check_version()
    print(f"version: {vision.__version__}, as in CHANGELOG.md, docker-bake.hcl and deploy/")


if __name__ == "__main__":
    main()
