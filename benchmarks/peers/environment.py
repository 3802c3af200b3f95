"""A Python environment for the HTTP peers, whose requirements may conflict with the project's."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from benchmarks.common import BUILD

__all__ = ["FRAMEWORKS", "prepare_peer_python"]

_FOLDER = BUILD / "peers" / "venv"
FRAMEWORKS = ("bentoml==1.4.40", "litserve==0.2.19")
_SHARED_PACKAGES = (
    "googleapis-common-protos",
    "numpy",
    "onnxruntime",
    "pi-heif",
    "pillow",
    "protobuf",
    "safetensors",
    "simplejpeg",
)
"""Packages of the decoder, model and response, installed in the project's versions."""


def prepare_peer_python() -> Path:
    """Return the environment's interpreter; creating it takes minutes the first time."""
    python = _FOLDER / "bin" / "python"
    marker = _FOLDER / "requirements.txt"
    requirements = "\n".join((*FRAMEWORKS, *_list_installed(), ""))
    if marker.is_file() and marker.read_text() == requirements:
        return python
    print(f"installing the peers into {_FOLDER} …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", _FOLDER], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements.split()], check=True)
    marker.write_text(requirements)
    return python


def _list_installed() -> list[str]:
    pinned = []
    for name in _SHARED_PACKAGES:
        try:
            pinned.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # what works without it here works without it there
    return pinned
