"""Write requirements/*.txt: exact versions with hashes of everything that `make setup` and the images install.

    python scripts/lock.py [--upgrade]

Without `--upgrade` versions stay as they are where pyproject.toml still admits them. Resolved for Linux and the Python
that runs this. Needs the package index; pip-tools gets an environment of its own, since it brings its own pip.
"""

import argparse
import re
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
EXTRAS = {
    "setup": "gateway http outcomes photo-uris traces signing local backfill ray train dev",
    "fuzz": "fuzz",
    "gateway": "gateway http outcomes photo-uris traces signing",
    "training": "train signing",
    "backfill": "backfill ray ray-cluster signing",
}
"""Extras of the project in each file."""
TRITON_REQUIREMENTS = ROOT / "deploy" / "triton" / "requirements.txt"
_PIP_TOOLS = "pip-tools==7.6.2"
_HEADER = "# Written by scripts/lock.py.\n"


def read_pins(path: Path) -> dict[str, str]:
    """Return the version of each package in a file."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^ \\\n]+)", path.read_text(), re.MULTILINE))


def prepare_pip_tools() -> Path:
    """Return the interpreter of an environment with pip-tools; it is created the first time."""
    python = ROOT / "build" / "pip-tools" / "bin" / "python"
    if not python.is_file():
        venv.create(python.parents[1], with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", _PIP_TOOLS], check=True)
    return python


def lock(python: Path, name: str, source: Path, *options: str) -> None:
    """Write one file, with the versions that it has so far."""
    path = FOLDER / f"{name}.txt"
    command = [str(python), "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe"]
    command += ["--strip-extras", "--no-header", "--no-annotate", "--no-emit-options", "--output-file", str(path)]
    subprocess.run([*command, *options, str(source)], cwd=ROOT, check=True)
    path.write_text(_HEADER + path.read_text())
    print(f"{path}: {len(read_pins(path))} packages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml admits")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    python = prepare_pip_tools()
    for name, extras in EXTRAS.items():
        if name != "setup":  # the same versions in all files
            (FOLDER / f"{name}.txt").write_text((FOLDER / "setup.txt").read_text())
        options = [option for extra in extras.split() for option in ("--extra", extra)]
        lock(python, name, ROOT / "pyproject.toml", *options, *(upgrade if name == "setup" else []))
    lock(python, "build", ROOT / "pyproject.toml", "--only-build-deps", "--build-deps-for", "wheel")
    # Triton's models need an older NumPy than the project.
    without_numpy = re.sub(r"^numpy==(?:.*\\\n)*.*\n", "", (FOLDER / "setup.txt").read_text(), flags=re.MULTILINE)
    (FOLDER / "triton.txt").write_text(without_numpy)
    lock(python, "triton", TRITON_REQUIREMENTS)


if __name__ == "__main__":
    main()
