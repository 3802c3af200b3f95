import json
import subprocess

import pytest

from serving.errors import TritonNotInstalled
from serving.triton import install


def test_another_platform_is_refused_with_the_alternatives(monkeypatch, tmp_path):
    monkeypatch.setenv(install.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(install.platform, "machine", lambda: "aarch64")
    for attempt in (install.find_triton, install.install_triton):
        with pytest.raises(TritonNotInstalled, match=r"Linux x86-64 only.*aarch64; give --triton"):
            attempt()


def test_a_missing_installation_is_reported_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv(install.HOME_VARIABLE, str(tmp_path))
    with pytest.raises(TritonNotInstalled, match="listing-vision triton install"):
        install.find_triton()


def test_an_incomplete_or_outdated_installation_does_not_count(monkeypatch, tmp_path):
    monkeypatch.setenv(install.HOME_VARIABLE, str(tmp_path))
    (tmp_path / "installed.json").write_text(json.dumps({"pytriton": "nvidia-pytriton==0.1"}))
    with pytest.raises(TritonNotInstalled):
        install.find_triton()


def test_the_model_environment_has_the_numpy_that_this_triton_can_read(triton_installation):
    python = triton_installation.model_environment / "bin" / "python"
    done = subprocess.run([python, "-c", "import numpy; print(numpy.__version__)"], capture_output=True, text=True)
    assert done.stdout.startswith("1.26.")
