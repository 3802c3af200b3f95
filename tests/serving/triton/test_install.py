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


def test_packages_are_installed_by_their_hashes(tmp_path, caplog):
    file = tmp_path / "packages.txt"
    (command,) = install.list_install_commands(install.MODEL_ENVIRONMENT, file)
    assert command[-4:] == ["--no-deps", "--require-hashes", "-r", str(file)]
    assert [line.split()[0] for line in file.read_text().splitlines() if "==" in line] == [*install.MODEL_ENVIRONMENT]
    assert not caplog.records


def test_a_decoder_of_another_version_is_installed_with_a_warning(tmp_path, caplog):
    file = tmp_path / "packages.txt"
    hashed, other = install.list_install_commands(["numpy==1.26.4", "pillow==1.0"], file)
    assert "--require-hashes" in hashed
    assert file.read_text().startswith("numpy==1.26.4 ")
    assert "pillow" not in file.read_text()
    assert other[-1] == "pillow==1.0"
    assert "pillow==1.0 without known hashes" in caplog.text
