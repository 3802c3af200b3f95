"""Toolchains of other languages: found on this machine, or the test is skipped with what is missing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

IMAGE = ROOT / "protos" / "listing_vision.binpb"
NODE_PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
GO_SOURCES = Path("/usr/share/gocode")
"""Where Debian's golang-…-dev packages lie."""
JARS = Path("/usr/share/java")


def require_programs(*names: str, debian: str) -> None:
    if missing := [name for name in names if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: apt-get install {debian})")


def read_snippets(heading: str) -> list[str]:
    """Return the code blocks below a heading of docs/callers.md, in order."""
    page = (ROOT / "docs" / "callers.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {heading}\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    assert section, heading
    return re.findall(r"^```\w+\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


def run(*command: str, cwd: Path, timeout_s: float = 240, **environment: str) -> str:
    """Return what a command printed."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install_node_packages(folder: Path) -> None:
    require_programs("node", "npm", debian="nodejs npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *NODE_PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"npm cannot install {' '.join(NODE_PACKAGES)}: {done.stderr.strip().splitlines()[-1:]}")


def prepare_go(folder: Path) -> dict[str, str]:
    """Generate the package shop/visionv1 in a GOPATH with Debian's grpc-go; return the environment for `go`."""
    # Without protobuf 1.5 named, apt-get takes 1.3 for grpc-go, which lacks google.golang.org/protobuf.
    debian = (
        "golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev "
        "protoc-gen-go protoc-gen-go-grpc protobuf-compiler"
    )
    require_programs("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc", debian=debian)
    modules = [GO_SOURCES / "src" / "google.golang.org" / name for name in ("grpc", "protobuf")]
    if missing := [str(module) for module in modules if not module.is_dir()]:
        pytest.skip(f"{', '.join(missing)} missing; Go modules are not fetched here (Debian: apt-get install {debian})")
    sources = folder / "src"
    (sources / "protos").mkdir(parents=True)
    shutil.copy(IMAGE, sources / "protos")
    run("bash", "-c", read_snippets("Go")[0], cwd=sources)
    return {"GO111MODULE": "off", "GOPATH": f"{folder}:{GO_SOURCES}", "GOFLAGS": ""}


def use_old_grpc_go(code: str) -> str:
    """Return a program for the grpc-go 1.33 of Debian, which lacks NewClient and the package `insecure`."""
    code = code.replace('\t"google.golang.org/grpc/credentials/insecure"\n', "")
    code = code.replace("grpc.WithTransportCredentials(insecure.NewCredentials())", "grpc.WithInsecure()")
    return code.replace("grpc.NewClient(", "grpc.Dial(")


def prepare_java(folder: Path) -> str:
    """Generate and compile the contract into `folder`/classes; return the class path."""
    debian = "default-jdk-headless libgrpc-java libnetty-java protobuf-compiler protobuf-compiler-grpc-java-plugin"
    require_programs("java", "javac", "protoc", "grpc_java_plugin", debian=debian)
    needed = ("grpc-api", "grpc-core", "grpc-netty", "grpc-protobuf", "grpc-stub", "protobuf", "guava", "netty-all")
    if missing := [name for name in needed if not (JARS / f"{name}.jar").exists()]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: apt-get install {debian})")
    (folder / "protos").mkdir()
    (folder / "src").mkdir()
    shutil.copy(IMAGE, folder / "protos")
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')} "
    run("bash", "-c", read_snippets("Java")[0].replace("protoc ", f"protoc {plugin}", 1), cwd=folder)
    # In a build they come from proto-google-common-protos.
    imports = [f"google/{name}.proto" for name in ("rpc/status", "api/annotations", "api/http", "api/field_behavior")]
    run("protoc", f"--descriptor_set_in={IMAGE}", "--java_out=src", *imports, cwd=folder)
    return ":".join([str(folder / "classes"), *(str(jar) for jar in sorted(JARS.glob("*.jar")))])
