"""What another user of the machine can do with the Triton that `serve` starts: nothing but read its metrics."""

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from serving.inference.model_names import MODEL_NAME
from serving.inference.triton import TritonEngine
from serving.triton.process import LocalTriton
from tests.support.gateway import PHOTO
from tests.support.helpers import list_children

NOBODY = 65534

ATTEMPTS = """
import json, pathlib, socket, sys, urllib.error, urllib.request

address, ports, regions = json.loads(sys.argv[1])
found = {}

def attempt(name, function):
    try:
        found[name] = function()
    except urllib.error.HTTPError as error:
        found[name] = f"HTTP {error.code}"
    except OSError as error:
        found[name] = type(error).__name__

def connect():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address.removeprefix("unix:"))
    return "connected"

def load(port, content_type):
    body = {"parameters": {"config": '{"backend": "python"}', "file:1/model.py": "AAAA"}}
    url = f"http://127.0.0.1:{port}/v2/repository/models/theirs/load"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": content_type})
    return f"HTTP {urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).status}"

def speak_grpc(port):
    with socket.create_connection(("127.0.0.1", port), timeout=3) as sock:
        sock.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        answer = sock.recv(9)
        return "gRPC" if answer[3:4] == b"\\x04" else "not gRPC"  # the type of a SETTINGS frame

attempt("connect", connect)
for port in ports:
    attempt(f"load {port}", lambda: load(port, "application/json"))
    attempt(f"load as a page {port}", lambda: load(port, "text/plain"))
    attempt(f"gRPC {port}", lambda: speak_grpc(port))
for region in regions:
    attempt(region, lambda: len(pathlib.Path(region).read_bytes()) > 0)
print(json.dumps(found))
"""


def list_tcp_ports(pid: int) -> set[int]:
    """TCP ports on which a process listens."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists() or link.is_symlink()]
    inodes = {found.group(1) for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def try_as(uid: int, triton: LocalTriton, regions: list[str], folder: Path) -> dict[str, object]:
    script = folder / "attempts.py"
    script.write_text(textwrap.dedent(ATTEMPTS))
    arguments = json.dumps([triton.address, sorted(list_tcp_ports(triton.pid)), regions])
    # The interpreter of this environment may lie in a folder that another user cannot open.
    interpreter = sys.executable if uid == os.getuid() else "/usr/bin/python3"
    done = subprocess.run(
        [interpreter, "-I", "-c", script.read_text(), arguments],
        capture_output=True,
        text=True,
        cwd="/",
        **({} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs a Python that every user can run")
def test_another_user_neither_loads_a_model_nor_reads_photos(bundle, running_triton, tmp_path):
    async def classify():
        engine = TritonEngine(running_triton.address)
        try:
            await engine.fetch_backend()
            assert engine.infer_encoded
            await engine.infer_encoded([PHOTO])
        finally:
            await engine.close()

    asyncio.run(classify())
    regions = [str(path) for path in Path("/dev/shm").glob(f"listing_vision_{os.getpid()}_*")]
    assert regions
    ours = try_as(os.getuid(), running_triton, regions, tmp_path)
    assert ours["connect"] == "connected"
    assert all(ours[region] is True for region in regions)

    theirs = try_as(NOBODY, running_triton, regions, tmp_path)
    assert theirs["connect"] == "PermissionError"
    assert {theirs[region] for region in regions} == {"PermissionError"}
    ports = list_tcp_ports(running_triton.pid)
    assert running_triton.metrics_url == f"http://127.0.0.1:{next(iter(ports))}/metrics"
    assert len(ports) == 1
    for port in ports:
        assert theirs[f"load {port}"] == theirs[f"load as a page {port}"] == "HTTP 405"
        assert theirs[f"gRPC {port}"] != "gRPC"
    assert running_triton.list_all_model_pids() == running_triton.list_model_pids(MODEL_NAME)


def test_what_triton_and_its_processes_write_is_for_their_user_alone(running_triton):
    pids = {running_triton.pid, *running_triton.list_all_model_pids()}
    pids |= {child for pid in running_triton.list_all_model_pids() for child in list_children(pid)}
    masks = {re.search(r"Umask:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1) for pid in pids}
    assert masks == {"0077"}
