"""Run a target of Dockerfile.gpu without Docker: its RUN lines, in a Debian of their own under chroot.

    python scripts/try_dockerfile.py gateway --folder /tmp/tried --python ~/.pyenv/versions/3.12.1
    python scripts/try_dockerfile.py training --folder /tmp/tried --python ~/.pyenv/versions/3.12.1 --pip-dry-run
    python scripts/try_dockerfile.py gateway --folder /tmp/tried --as-found --volume bundles/grocery:/bundle \
        --env LISTING_VISION_TRITON=127.0.0.1:8001 --env LISTING_VISION_INSECURE=1 -- serve

Checks that packages, paths and entry points exist; needs Linux, root, and Debian's debootstrap. A Python of the same
version, Debian's own or that of `--python PREFIX`, replaces the official images' Python, so only its build differs; the
same Debian replaces any other base image and lacks what that image adds. At the end the target's entry point runs as in
a container: by its user, with its environment, and on a file system that is read-only except for /tmp and /dev/shm.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "Dockerfile.gpu"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON_IMAGE = re.compile(r"python:(?P<version>\d+\.\d+)[\d.]*-slim-(?P<release>[a-z]+)")
_DEBIAN_PACKAGES = "python3,python3-venv,python3-pip,python3-dev,ca-certificates"
_OF_NETWORK = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
"""Prefixes of the environment variables that this machine needs to reach its package index."""
_FILES_OF_NETWORK = ("/etc/pip.conf", "/etc/xdg/pip", "/etc/resolv.conf", "/etc/hosts")


@dataclass(kw_only=True)
class Stage:
    name: str
    base: str
    """An image or the name of an earlier stage."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, value) in order; ARGs before the first stage are substituted."""


def read_stages(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name, in order."""
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    with path.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    current: Stage | None = None
    for line in structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "COMMENT":
            continue
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()
            current = stages[name] = Stage(name=name, base=_filled(base, arguments))
        elif current is None:
            name, _, default = value.partition("=")
            arguments[name] = default
        else:
            current.lines.append((instruction, value))
    return stages


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found.group(1), ""), text)


def needed(stages: Mapping[str, Stage], target: str) -> list[Stage]:
    """Return a target and the stages that it needs, in build order."""
    found = {target}
    for name in reversed(list(stages)):
        if name in found:
            text = "\n".join(value for _, value in stages[name].lines)
            found |= {stages[name].base, *re.findall(r"(?:--from=|\bfrom=)([\w-]+)", text)}
    return [stage for name, stage in stages.items() if name in found]


def _debian_of(image: str, stages: Mapping[str, Stage]) -> tuple[str, str]:
    """Return release and Python version of the Debian that replaces an image."""
    if found := _PYTHON_IMAGE.fullmatch(image):
        return found["release"], found["version"]
    print(f"{image} is stood in for by a plain Debian: what the image itself brings is not tried")
    # NVIDIA's Triton 26.11 has the same version of Python as the project's images.
    bases = (_PYTHON_IMAGE.fullmatch(stage.base) for stage in stages.values())
    return next((found["release"], found["version"]) for found in bases if found)


class Trial:
    """Builds stages as folders and runs their lines there."""

    def __init__(
        self, folder: Path, stages: Mapping[str, Stage], *, pip_dry_run: bool, python: Path | None = None
    ) -> None:
        self._folder = folder
        self._python = python
        self._stages = stages
        self._pip_dry_run = pip_dry_run
        self._environments: dict[str, dict[str, str]] = {}
        self._users: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def root(self, stage: str) -> Path:
        return self._folder / stage

    def make(self, stage: Stage) -> None:
        """Build a stage."""
        if stage.base in self._stages:
            base = self.root(stage.base)
        else:
            release, version = _debian_of(stage.base, self._stages)
            base = self._debian(release, version)
        root = self.root(stage.name)
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
        self._inherit(stage)
        for instruction, value in stage.lines:
            here = self._folders[stage.name]
            if self._note(stage, instruction, value):
                continue
            if instruction == "COPY":
                self._copy(root / here.lstrip("/"), root, value)
            elif instruction == "RUN":
                (root / here.lstrip("/")).mkdir(parents=True, exist_ok=True)
                self._run(stage, root, here, value)
            else:
                print(f"{stage.name}: nothing to do for {instruction} {value}")

    def resume(self, stage: Stage) -> None:
        """Reuse a stage that was built before."""
        self._inherit(stage)
        for instruction, value in stage.lines:
            self._note(stage, instruction, value)

    def start(
        self, stage: Stage, words: Sequence[str], *, variables: Sequence[str] = (), volumes: Sequence[str] = ()
    ) -> int:
        """Run the entry point with these arguments on a read-only file system; return its exit status.

        Args:
        variables: NAME=VALUE
        volumes: PATH:WHERE, of this machine, which can be read there.
        """
        entry = next(json.loads(value) for name, value in reversed(stage.lines) if name == "ENTRYPOINT")
        print(f"{stage.name}: {shlex.join([*entry, *words])}", flush=True)
        command = self._chrooted(
            stage.name, "/", [*entry, *words], user=self._users[stage.name], read_only=True, volumes=volumes
        )
        environment = self._environments[stage.name] | dict(pair.split("=", 1) for pair in variables)
        return subprocess.run(command, env=environment, check=False).returncode

    def _inherit(self, stage: Stage) -> None:
        self._environments[stage.name] = dict(self._environments.get(stage.base, {"PATH": _PATH}))
        self._users[stage.name] = self._users.get(stage.base, "root")
        self._folders[stage.name] = self._folders.get(stage.base, "/")

    def _note(self, stage: Stage, instruction: str, value: str) -> bool:
        """Apply an instruction that only changes how others run; return whether it was one."""
        environment = self._environments[stage.name]
        if instruction in ("ENV", "ARG"):
            for word in shlex.split(value):
                name, _, text = word.partition("=")
                environment[name] = _filled(text, environment)
        elif instruction == "USER":
            self._users[stage.name] = value
        elif instruction == "WORKDIR":
            self._folders[stage.name] = value
        return instruction in ("ENV", "ARG", "USER", "WORKDIR")

    def _run(self, stage: Stage, root: Path, here: str, value: str) -> None:
        mounts, line = re.fullmatch(r"((?:--mount=\S+\s+)*)(.*)", value, re.DOTALL).groups()
        if self._pip_dry_run:
            line = re.sub(r"( --python \S+ install) ", r"\1 --dry-run ", line)
        mounted = []
        for mount in mounts.split():
            options = dict(pair.split("=", 1) for pair in mount.removeprefix("--mount=").split(","))
            target = root / options["target"].lstrip("/")
            shutil.copytree(self.root(options["from"]) / options["source"].lstrip("/"), target)
            mounted.append(target)
        print(f"{stage.name}: RUN {line}", flush=True)
        began_s = time.monotonic()
        command = self._chrooted(stage.name, here, ["/bin/sh", "-c", line], user=self._users[stage.name])
        environment = {**self._environments[stage.name], **_network()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{stage.name}: status {done.returncode} of: {line}\n{done.stdout}{done.stderr}")
        for target in mounted:
            shutil.rmtree(target)
        size = subprocess.run(["du", "-sm", str(root)], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"{stage.name}: ok, {time.monotonic() - began_s:.0f} s, {size} MB in all")

    def _copy(self, here: Path, root: Path, value: str) -> None:
        words = shlex.split(value)
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        origin = self.root(flags["from"]) if "from" in flags else ROOT
        into = (root if target.startswith("/") else here) / target.lstrip("/")
        for source in (origin / path.lstrip("/") for path in sources):
            place = into / source.name if target.endswith("/") else into
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if origin == ROOT else None
                shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(source, place)

    def _chrooted(
        self,
        stage: str,
        here: str,
        words: Sequence[str],
        *,
        user: str,
        read_only: bool = False,
        volumes: Sequence[str] = (),
    ) -> list[str]:
        """Run a command in a mount namespace of its own, so that its mounts end with it."""
        root = self.root(stage)
        script = ["set -e", f"mount --bind {root} {root}", f"mount -t proc proc {root}/proc"]
        for device in ("null", "zero", "urandom", "random", "full"):
            script += [f"touch {root}/dev/{device}", f"mount --bind /dev/{device} {root}/dev/{device}"]
        script.append(f"ln -sfn /proc/self/fd {root}/dev/fd")
        for path in () if read_only else _bound_files():
            at = f"{root}{path}"
            script.append(f"mkdir -p {at}" if path.is_dir() else f"mkdir -p {Path(at).parent}; touch {at}")
            script.append(f"mount --rbind {path} {at}")
        for volume in volumes:
            path, _, where = volume.partition(":")
            script.append(f"mkdir -p {root}{where}" if Path(path).is_dir() else f"touch {root}{where}")
            script.append(f"mount --bind {Path(path).resolve()} {root}{where}")
        if read_only:
            script += [f"mkdir -p {root}/dev/shm", f"mount -o remount,bind,ro {root}"]
            script += [f"mount -t tmpfs tmpfs {root}{path}" for path in ("/tmp", "/dev/shm")]
        inside = f'cd {shlex.quote(here)} && exec "$@"'
        group = ":".join([user, user] if ":" not in user else [user]) if user != "root" else "0:0"
        script.append(f"exec chroot --userspec={group} {root} /bin/sh -c {shlex.quote(inside)} sh {shlex.join(words)}")
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", "\n".join(script)]

    def _debian(self, release: str, version: str) -> Path:
        """Create a Debian with a Python at the path of the official images' Python."""
        root = self._folder / f"debian-{release}"
        if not (root / "made").is_file():
            shutil.rmtree(root, ignore_errors=True)
            options = ["--variant=minbase", f"--include={_DEBIAN_PACKAGES}"]
            subprocess.run(["debootstrap", *options, release, str(root)], check=True, stdout=subprocess.DEVNULL)
            (root / "made").touch()
        if self._python:
            _copy_python(self._python, root, version)
            return root
        # Debian's mark that its Python's packages are its own; the official images have none.
        (root / "usr/lib" / f"python{version}" / "EXTERNALLY-MANAGED").unlink(missing_ok=True)
        for name in ("python", "python3", f"python{version}"):
            link = root / "usr/local/bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/bin/python{version}")
        if not (root / "usr/bin" / f"python{version}").exists():
            raise SystemExit(f"Debian {release} has no Python {version}; give the folder of one as --python")
        return root


def _copy_python(prefix: Path, root: Path, version: str) -> None:
    """Copy an installed Python to where the official images have theirs."""
    if not (prefix / "bin" / f"python{version}").exists():
        raise SystemExit(f"--python {prefix} has no bin/python{version}, which the image has")
    place = root / "usr" / "local"
    if (place / "bin" / f"python{version}").exists():  # copied before
        return
    shutil.copytree(prefix, place, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for script in (place / "bin").iterdir():  # they name the interpreter by its old path
        if script.is_file() and not script.is_symlink() and script.read_bytes()[:2] == b"#!":
            script.write_bytes(script.read_bytes().replace(bytes(prefix), b"/usr/local"))
    subprocess.run(["chroot", root, "/sbin/ldconfig"], check=True, env={"PATH": _PATH})


def _network() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_OF_NETWORK)}


def _bound_files() -> Iterator[Path]:
    """Return the files that this machine needs to reach its package index."""
    named = [word for value in _network().values() for word in value.split() if word.startswith("/")]
    for path in dict.fromkeys([*_FILES_OF_NETWORK, *named]):
        if Path(path).exists():
            yield Path(path)


def _first_base(stages: Mapping[str, Stage], target: str) -> str:
    base = stages[target].base
    return _first_base(stages, base) if base in stages else base


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Carry out a target of Dockerfile.gpu without Docker.",
        epilog="After a --: the entry point's arguments.",
    )
    stages = read_stages()
    parser.add_argument("target", choices=list(stages))
    parser.add_argument("--folder", type=Path, required=True, help="Where the stages are made; some GB.")
    parser.add_argument("--python", type=Path, help="Folder of an installed Python. Default: Debian's own.")
    parser.add_argument("--pip-dry-run", action="store_true", help="Resolve and download packages, install none.")
    parser.add_argument("--as-found", action="store_true", help="Of stages made before; only the entry point runs.")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE for the entry point.")
    parser.add_argument("--volume", action="append", default=[], help="PATH:WHERE it lies for the entry point.")
    # argparse takes no options of others after a --.
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    asked, words = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :] or ["--help"]
    asked.folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(asked.folder.resolve(), stages, pip_dry_run=asked.pip_dry_run, python=asked.python)
    for stage in needed(stages, asked.target):
        if asked.as_found:
            trial.resume(stage)
        else:
            trial.make(stage)
    if asked.pip_dry_run or not _PYTHON_IMAGE.fullmatch(_first_base(stages, asked.target)):
        print(f"{asked.target}: its entry point is not run")
    else:
        raise SystemExit(trial.start(stages[asked.target], words, variables=asked.env, volumes=asked.volume))


if __name__ == "__main__":
    main()
