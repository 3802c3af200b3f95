"""Whether a Triton answers NVIDIA's security bulletins, by its version."""

import datetime
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from serving.processes.sockets import is_loopback

__all__ = ["TritonSecurity", "find_version_problem", "is_reachable_by_others"]


@dataclass(frozen=True)
class TritonSecurity:
    """The content of security.toml."""

    read_on: datetime.date
    bulletins: list[int]
    minimum_version: str
    image: str
    fixed: dict[str, str]
    """What a release mended."""

    @classmethod
    def load(cls) -> Self:
        return cls(**tomllib.loads((Path(__file__).parent / "security.toml").read_text(encoding="utf-8")))


def is_reachable_by_others(address: str) -> bool:
    """Return whether other machines may reach a Triton at `HOST:PORT` or `unix:PATH`."""
    return not (address.startswith("unix:") or is_loopback(address.rpartition(":")[0]))


def find_version_problem(version: str, address: str) -> str | None:
    """Return what is wrong with a Triton that tells this version, None if nothing is."""
    security = TritonSecurity.load()
    if _parse(version) >= _parse(security.minimum_version):
        return None
    return (
        f"the Triton at {address} is version {version}, which has known security faults; {security.minimum_version} "
        f"({security.image}) answers NVIDIA's bulletins {', '.join(map(str, security.bulletins))}, "
        f"as read on {security.read_on}"
    )


def _parse(version: str) -> tuple[int, ...]:
    """Return the leading numbers; a version without any is the oldest."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
