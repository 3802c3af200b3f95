"""Write requirements/*.txt: exact versions with hashes of everything that `make setup` and the images install.

    python scripts/lock.py [--upgrade]

Without `--upgrade` versions stay as they are where pyproject.toml still admits them. Resolved for Linux and the oldest
Python; a test finds what a newer one would need besides. Needs the package index; pip-tools gets an environment of its
own, since it brings its own pip.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from serving.triton.install import HASHES_FILE, MODEL_ENVIRONMENT, PYTRITON

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
EXTRAS = {
    "setup": "gateway http outcomes photo-uris traces signing local backfill ray train dev",
    "fuzz": "fuzz",
    "gateway": "gateway http outcomes photo-uris traces signing",
    "training": "train signing s3",
    "backfill": "backfill ray ray-cluster signing s3",
}
"""Extras of the project in each file."""
TRITON_REQUIREMENTS = ROOT / "deploy" / "triton" / "requirements.txt"
TRITON_PACKAGES = ROOT / "serving" / "triton" / HASHES_FILE
"""What `triton install` downloads, in the versions that serving/triton/install.py names."""
_OLDEST_PYTHON = (3, 11)
_PIP_TOOLS = "pip-tools==7.6.2"
_HEADER = "# Written by scripts/lock.py.\n"


def read_pins(path: Path) -> dict[str, str]:
    """Return the version of each package in a file."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==([^ \\\n]+)", path.read_text(), re.MULTILINE))


def prepare_pip_tools() -> Path:
    """Return the interpreter of an environment with pip-tools; it is created the first time."""
    python = ROOT / "build" / "pip-tools" / "bin" / "python"
    if not python.is_file():
        venv.create(python.parents[1], with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", _PIP_TOOLS], check=True)
    return python


def lock(python: Path, path: Path, source: Path, *options: str) -> None:
    """Write one file, with the versions that it has so far."""
    command = [str(python), "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe"]
    command += ["--no-strip-extras", "--no-header", "--no-annotate", "--no-emit-options", "--output-file", str(path)]
    subprocess.run([*command, *options, str(source)], cwd=ROOT, check=True)
    path.write_text(_HEADER + pin_without_extras(path.read_text()))
    print(f"{path}: {len(read_pins(path))} packages")


def pin_without_extras(text: str) -> str:
    """Pin each package that is pinned with extras once more without them.

    Which of both pip looks for depends on its version: 23.0 asks for the extras, 23.2 does not find a pin with extras
    for a package that is required without.
    """
    pinned = re.compile(r"^([A-Za-z0-9._-]+)\[.*?\](==.*\n(?:    .*\n)*)", re.MULTILINE)
    return pinned.sub(r"\1\2\g<0>", text)


def lock_triton_packages(python: Path) -> None:
    """Write serving/triton/packages.txt: the wheel of the server without its dependencies, and its models' packages."""
    blocks: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, written = Path(folder) / "source.in", Path(folder) / "written.txt"
        for requirements in ([PYTRITON], MODEL_ENVIRONMENT):
            source.write_text("\n".join(requirements))
            written.unlink(missing_ok=True)
            lock(python, written, source)
            found = re.split(r"^(?=[a-zA-Z0-9])", written.read_text(), flags=re.MULTILINE)[1:]
            blocks |= {block.split(maxsplit=1)[0]: block for block in found}
    TRITON_PACKAGES.write_text(_HEADER + "".join(blocks[requirement] for requirement in (PYTRITON, *MODEL_ENVIRONMENT)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml admits")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    if sys.version_info[:2] != _OLDEST_PYTHON:
        raise SystemExit("lock.py is run by Python {}.{}, whose packages newer ones take too".format(*_OLDEST_PYTHON))
    python = prepare_pip_tools()
    for name, extras in EXTRAS.items():
        if name != "setup":  # the same versions in all files
            (FOLDER / f"{name}.txt").write_text((FOLDER / "setup.txt").read_text())
        options = [option for extra in extras.split() for option in ("--extra", extra)]
        lock(python, FOLDER / f"{name}.txt", ROOT / "pyproject.toml", *options, *(upgrade if name == "setup" else []))
    lock(python, FOLDER / "build.txt", ROOT / "pyproject.toml", "--only-build-deps", "--build-deps-for", "wheel")
    # Triton's models need an older NumPy than the project.
    without_numpy = re.sub(r"^numpy==(?:.*\\\n)*.*\n", "", (FOLDER / "setup.txt").read_text(), flags=re.MULTILINE)
    (FOLDER / "triton.txt").write_text(without_numpy)
    lock(python, FOLDER / "triton.txt", TRITON_REQUIREMENTS)
    lock_triton_packages(python)


if __name__ == "__main__":
    main()
