"""Build the distributions of a release into dist/, check each in a clean environment, and write their provenance.

    python scripts/release.py [--extras gateway local …]

They are built from the files of the checked-out commit, not from the working tree: sdist and wheel of the project, and
the wheel of its client. Refused: uncommitted changes, another version than the newest of CHANGELOG.md, and changes that
it still lists as unreleased. Every extra is installed in an environment of its own, in the versions of requirements/,
unless `--extras` names those to try.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.check_version import check_version
from scripts.lock import read_pins
from vision.runtime.files import compute_sha256

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PROVENANCE_FILE = "provenance.intoto.json"
BUILD_TYPE = "urn:listing-vision:scripts/release.py:v1"
IMPORTS = {
    "gateway": "serving.gateway.server, listing_vision_client",
    "local": "vision.engine",
    "http": "starlette, uvicorn",
    "photo-uris": "aiohttp, fsspec",
    "traces": "serving.observability.tracing, opentelemetry.sdk",
    "outcomes": "serving.outcomes.records, pyarrow",
    "signing": "vision.attestation, model_signing",
    "backfill": "serving.backfill.pipeline",
    "ray": "ray",
    "ray-cluster": "ray",
    "train": "training.trainer.training_loop, training.export.export",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "hub": "huggingface_hub",
    "s3": "s3fs",
    "explain": "captum",
    "dev": "pytest",
    "fuzz": "atheris",
}
"""What must be importable where an extra is installed."""
_NEEDS_TOO = {"outcomes": "gateway", "backfill": "gateway", "train": "gateway"}
"""An extra that is of use beside another one only."""


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    """Raises SystemExit: the command failed; its output is shown."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")


def read_git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def build_distributions(output: Path) -> list[Path]:
    """Build sdist and wheels of the committed files, and return them; the same commit gives the same wheels."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    epoch = read_git("show", "-s", "--format=%ct", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", output)
        for arguments in ((), ("--wheel", "listing_vision_client")):
            run(*build, *arguments, cwd=Path(folder), SOURCE_DATE_EPOCH=epoch, PYTHONPATH="")
    distributions = sorted((*output.glob("*.whl"), *output.glob("*.tar.gz")))
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions)
    return distributions


def check_extra(wheel: Path, extra: str, folder: Path) -> None:
    """Install a wheel with one extra in an environment of its own, import what it is for, and run the console script.

    Raises:
        SystemExit: a step failed.
    """
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    pins = {**read_pins(ROOT / "requirements" / "fuzz.txt"), **read_pins(ROOT / "requirements" / "setup.txt")}
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    extras = ",".join(name for name in (extra, _NEEDS_TOO.get(extra)) if name)
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, f"{wheel}[{extras}]", "-c", constraints, PYTHONPATH="")
    run(python, "-m", "pip", "check", PYTHONPATH="")
    public_api = "import listing_vision as p; [getattr(p, name) for name in p.__all__]" if extra == "train" else ""
    run(python, "-c", f"import listing_vision, {IMPORTS[extra]}\n{public_api}", cwd=folder, PYTHONPATH="")
    run(folder / "bin" / "listing-vision", "version", cwd=folder, PYTHONPATH="")


def build_provenance(distributions: Iterable[Path], *, started: datetime.datetime) -> dict[str, Any]:
    """Return an in-toto statement with SLSA provenance 1.0: from which commit and tools the distributions were made."""
    workflow = os.environ.get("GITHUB_WORKFLOW_REF")
    builder = f"https://github.com/{workflow}" if workflow else "urn:listing-vision:a-local-build"
    source = os.environ.get("GITHUB_SERVER_URL", "") + "/" + os.environ.get("GITHUB_REPOSITORY", "")
    tools = ROOT / "requirements" / "setup.txt"
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": compute_sha256(path)}} for path in distributions],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"target": "make release"},
                "internalParameters": {"python": sys.version.split()[0]},
                "resolvedDependencies": [
                    {
                        "uri": f"git+{source}" if len(source) > 1 else "git+file:.",
                        "digest": {"gitCommit": read_git("rev-parse", "HEAD")},
                    },
                    {"uri": f"file:{tools.relative_to(ROOT)}", "digest": {"sha256": compute_sha256(tools)}},
                ],
            },
            "runDetails": {
                "builder": {"id": builder},
                "metadata": {
                    "startedOn": started.isoformat(timespec="seconds"),
                    "finishedOn": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                },
            },
        },
    }


def find_objections() -> list[str]:
    """Return why this checkout cannot be released; empty if it can."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## )", changelog, re.MULTILINE | re.DOTALL)
    objections = []
    if changed := read_git("status", "--porcelain"):
        objections.append(f"uncommitted changes:\n{changed}")
    if unreleased and unreleased[1].strip():
        objections.append(
            "CHANGELOG.md has changes under `## Unreleased`: put them under `## VERSION`, and set the version"
        )
    return objections


def main(arguments: Sequence[str] | None = None) -> None:
    extras = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", choices=extras, default=extras, help="those to install (all)")
    chosen = parser.parse_args(arguments).extras
    started = datetime.datetime.now(datetime.UTC)
    check_version()
    if objections := find_objections():
        raise SystemExit("\n".join(objections))
    if DIST.exists():
        raise SystemExit(f"{DIST} exists; remove it first")
    distributions = build_distributions(DIST)
    wheel = next(path for path in distributions if path.name.startswith("listing_vision-") and path.suffix == ".whl")
    for extra in chosen:
        with tempfile.TemporaryDirectory() as folder:
            check_extra(wheel, extra, Path(folder) / "environment")
        print(f"[{extra}]: installed, imported")
    provenance = build_provenance(distributions, started=started)
    (DIST / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1) + "\n")
    print(f"{DIST}: {', '.join(path.name for path in distributions)}, {PROVENANCE_FILE}")


if __name__ == "__main__":
    main()
