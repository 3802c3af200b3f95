"""README's ten commands, run as written: from a folder of photos to a served model and a backfill."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.processes.sockets import find_free_ports
from tests.conftest import ROOT
from tests.support.waiting import wait_until
from training.data.synthetic import create_synthetic_photo

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.search(r"## Your own photos in ten commands\n.*?```\n(.*?)```", README, re.DOTALL)[1]
COMMANDS = [line.split("  #")[0].strip() for line in BLOCK.splitlines()]
PHOTO_NUMBERS = {"train": range(1, 17), "val": range(7, 10), "test": range(9, 10)}
"""Per split and class: the least that fills one batch of the recipe, so that its ten epochs are ten steps."""


@pytest.fixture
def environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def write_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, numbers in PHOTO_NUMBERS.items():
        for product, name in enumerate(("sneakers", "boots")):
            (folder / split / name).mkdir(parents=True)
            for number in numbers:
                (folder / split / name / f"{number}.jpg").write_bytes(create_synthetic_photo(product, 0, rng))


@pytest.mark.timeout(600)  # ten processes, five of which import PyTorch: under a minute on two idle cores
def test_the_ten_commands_run_as_written(environment, triton_installation, tmp_path):
    assert len(COMMANDS) == 10
    write_photos(tmp_path / "photos")
    port = str(find_free_ports(1)[0])
    environment["LISTING_VISION_PORT"] = port
    printed: dict[str, str] = {}
    log = tmp_path / "serve.log"
    served: subprocess.Popen | None = None
    try:
        for command in COMMANDS:
            line = command.replace("50051", port)
            if line.endswith("&"):
                with log.open("wb") as out:
                    served = subprocess.Popen(
                        ["bash", "-c", f"exec {line[:-1]}"], stdout=out, stderr=out, cwd=tmp_path, env=environment
                    )
                wait_until(lambda: f"listening on 127.0.0.1:{port}" in log.read_text(), "serve listens")
                continue
            done = subprocess.run(
                ["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            printed[line.split()[1]] = done.stdout
    finally:
        if served:
            served.send_signal(signal.SIGTERM)
            assert served.wait(60) == 0, log.read_text()
    assert printed["classify"].split()[:3] == ["category", "confidence", "action"]
    assert "40 of 40" in printed["backfill"]
    for path in (
        "bundles/mine/model.onnx",
        "reports/mine/report.html",
        "reports/suspects",
        "backfills/1/_SUCCESS.json",
    ):
        assert (tmp_path / path).exists(), path
