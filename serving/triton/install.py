"""A real Triton server from PyPI wheels, for Linux x86-64 machines without containers.

The wheel `nvidia-pytriton` contains the binary with its Python backend. It is unpacked without its dependencies, which
would force numpy 1 on this environment. The backend has a small environment of its own instead, since with numpy 2 it
returns zeros without any error.
"""

import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from serving.errors import TritonNotInstalled, TritonUnsupported

__all__ = ["TritonInstallation", "find_triton", "install_triton", "list_install_commands"]

_log = logging.getLogger(__name__)

PYTRITON = "nvidia-pytriton==0.7.0"
TRITON_VERSION = "2.51"
"""The version that it contains."""
MODEL_ENVIRONMENT = (
    "numpy==1.26.4",
    "onnxruntime==1.32.0",
    "flatbuffers==25.12.19",
    "packaging==26.3",
    "protobuf==7.36.2",
    # A model must decode photos exactly as this environment does.
    *(f"{package}=={metadata.version(package)}" for package in ("pillow", "pi-heif", "simplejpeg")),
)
HOME_VARIABLE = "LISTING_VISION_TRITON_HOME"
HASHES_FILE = "packages.txt"
"""Requirements with the hashes of all that is downloaded, written by scripts/lock.py."""


@dataclass(frozen=True)
class TritonInstallation:
    home: Path
    version: str = TRITON_VERSION

    @property
    def server_root(self) -> Path:
        return self.home / "wheel" / "pytriton" / "tritonserver"

    @property
    def binary(self) -> Path:
        return self.server_root / "bin" / "tritonserver"

    @property
    def model_environment(self) -> Path:
        """The virtual environment that the Python backend runs in."""
        return self.home / "model-environment"

    @property
    def marker(self) -> Path:
        """A file that is written last; without it the installation is incomplete."""
        return self.home / "installed.json"

    def process_environment(self) -> dict[str, str]:
        """Environment in which the server finds its Python and the shared library of Python."""
        libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "PATH": f"{self.model_environment / 'bin'}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": ":".join(part for part in libraries if part),
        }


def get_triton_home() -> Path:
    """Where the server is installed: `LISTING_VISION_TRITON_HOME`, else `triton` in this Python environment."""
    return Path(os.environ.get(HOME_VARIABLE) or Path(sys.prefix) / "triton")


def find_triton() -> TritonInstallation:
    """The installation on this machine.

    Raises:
        TritonNotInstalled: there is none; the message says how to install it, or why this machine cannot run it.
    """
    installation = TritonInstallation(get_triton_home())
    if not installation.marker.is_file() or json.loads(installation.marker.read_text()) != _describe_installation():
        _require_platform()
        raise TritonNotInstalled(
            f"no Triton server at {installation.home}; `listing-vision triton install` installs it (330 MB)"
        )
    return installation


def install_triton() -> TritonInstallation:
    """Install the server and the environment of its models, unless they are installed.

    Raises:
        TritonUnsupported: this machine cannot run it.
        TritonNotInstalled: a step failed; the message has its output.
    """
    _require_platform()
    installation = TritonInstallation(get_triton_home())
    try:
        return find_triton()
    except TritonNotInstalled:
        shutil.rmtree(installation.home, ignore_errors=True)
    _install([sys.executable], [PYTRITON], "--target", str(installation.home / "wheel"))
    stub_name = "triton_python_backend_stub"
    backend = installation.server_root / "backends" / "python"
    stub = installation.server_root / "python_backend_stubs" / _get_python_version() / stub_name
    if not stub.is_file():
        offered = sorted(path.parent.name for path in stub.parent.parent.glob(f"*/{stub_name}"))
        shutil.rmtree(installation.home)
        raise TritonUnsupported(
            f"{PYTRITON} has no Python backend for Python {_get_python_version()}; use one of {', '.join(offered)}"
        )
    shutil.copy2(stub, backend / stub_name)
    for executable in (installation.binary, backend / stub_name):
        executable.chmod(0o755)
    _run([sys.executable, "-m", "venv", str(installation.model_environment)])
    _install([str(installation.model_environment / "bin" / "python")], MODEL_ENVIRONMENT)
    if packages := _find_torch_packages():
        # For models that need PyTorch. A .pth file adds to the end of the path, so the packages installed above win.
        site = installation.model_environment / "lib" / f"python{_get_python_version()}" / "site-packages"
        (site / "packages_of_torch.pth").write_text(f"{packages}\n")
    installation.marker.write_text(json.dumps(_describe_installation()))
    return installation


def list_install_commands(requirements: Sequence[str], hashed_file: Path) -> list[list[str]]:
    """Return the arguments of pip that install exact versions; `hashed_file` gets those whose hashes are known.

    Decoders are installed in the versions of this environment. One that was not installed from requirements/ may have
    another version than that whose hashes are known; it is installed without, with a warning.
    """
    hashes = _read_hashes()
    options = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    known = [requirement for requirement in requirements if requirement in hashes]
    hashed_file.write_text("".join(hashes[requirement] for requirement in known))
    commands = [[*options, "--require-hashes", "-r", str(hashed_file)]] if known else []
    if unknown := [requirement for requirement in requirements if requirement not in hashes]:
        _log.warning(
            "installing %s without known hashes: this environment was not made from requirements/", ", ".join(unknown)
        )
        commands.append([*options, *unknown])
    return commands


def _install(python: Sequence[str], requirements: Sequence[str], *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for arguments in list_install_commands(requirements, Path(folder) / HASHES_FILE):
            _run([*python, *arguments, *options])


def _read_hashes() -> dict[str, str]:
    """Return the lines of each requirement, hashes included, by `NAME==VERSION`."""
    text = (resources.files("serving.triton") / HASHES_FILE).read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)[1:]
    return {block.split(maxsplit=1)[0]: block for block in blocks}


def _describe_installation() -> dict[str, object]:
    return {
        "pytriton": PYTRITON,
        "model_environment": list(MODEL_ENVIRONMENT),
        "python": _get_python_version(),
        "torch": _find_torch_packages(),
    }


def _find_torch_packages() -> str | None:
    """The folder of this environment's PyTorch, which is not imported."""
    found = importlib.util.find_spec("torch")
    return str(Path(found.origin).parents[1]) if found and found.origin else None


def _get_python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _require_platform() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise TritonUnsupported(
            f"the Triton wheel runs on Linux x86-64 only, this is {sys.platform} {platform.machine()}; give --triton "
            "HOST:PORT of a server elsewhere, or use the in-process engine"
        )


def _run(command: list[str]) -> None:
    _log.info("running %s", " ".join(command))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise TritonNotInstalled(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
