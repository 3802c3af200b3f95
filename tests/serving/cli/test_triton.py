"""The verbs of Triton that need no Triton."""

import re

from typer.testing import CliRunner

from serving.cli.triton import triton_app
from serving.errors import TritonUnsupported
from serving.triton import install
from serving.triton.config import GPU_DECODERS
from vision.images.gpu_decoding import DECODER_LIBRARIES


def run(*words: object):
    return CliRunner().invoke(triton_app, [str(word) for word in words])


def test_stable_canary_and_shadow_are_written_side_by_side_and_replaced_only_when_told(bundle, other_bundle, tmp_path):
    words = ("repository", bundle.folder, tmp_path, "--canary", other_bundle.folder, "--shadow", other_bundle.folder)
    done = run(*words)
    assert done.exit_code == 0, done.output
    names = {"listing_vision", "listing_vision_canary", "listing_vision_shadow"}
    assert {path.parent.name for path in tmp_path.glob("*/config.pbtxt")} == names
    assert "exists" in str(run(*words).exception)
    assert run(*words, "--replace").exit_code == 0


def test_usage_errors_exit_2_and_name_the_flag(bundle, tmp_path):
    done = run("repository", bundle.folder, tmp_path, "--backend", "paddle")
    assert (done.exit_code, "backend 'paddle' is not one of" in done.output) == (2, True)
    words = ("--backend", "tensorrt", "--plan", "model.plan", "--canary", bundle.folder)
    done = run("repository", bundle.folder, tmp_path, *words)
    assert (done.exit_code, "--plan" in done.output) == (2, True)
    done = run("repository", bundle.folder, tmp_path, "--backend", "python-gpu", "--gpu-decoder", "dali")
    assert (done.exit_code, "GPU decoder 'dali' is not one of" in done.output) == (2, True)
    done = run("repository", bundle.folder, tmp_path, "--gpu-decoder", "torchcodec")
    assert (done.exit_code, "--gpu-decoder is for --backend python-gpu" in done.output) == (2, True)


def test_what_decodes_on_the_gpu_is_named_for_certificates(bundle, tmp_path):
    for words, backend in (((), "torch-cuda-nvjpeg"), (("--gpu-decoder", "torchcodec"), "torch-cuda-torchcodec")):
        output = tmp_path / backend
        assert run("repository", bundle.folder, output, "--backend", "python-gpu", *words).exit_code == 0
        config = (output / "listing_vision" / "config.pbtxt").read_text()
        found = re.findall(r'key: "(?:logits|encoded)_backend"\s+value \{\s+string_value: "(.*)"', config)
        assert sorted(found) == ["torch-cuda", backend]
        library = "torchcodec" if words else "torchvision"
        assert re.search(rf'key: "gpu_decoder"\s+value \{{\s+string_value: "{library}"', config)


def test_both_sides_know_the_same_libraries():
    assert GPU_DECODERS == DECODER_LIBRARIES


def test_a_machine_that_cannot_run_it_fails_unless_that_is_allowed(monkeypatch):
    def refuse():
        raise TritonUnsupported("aarch64")

    monkeypatch.setattr(install, "install_triton", refuse)
    assert isinstance(run("install").exception, TritonUnsupported)
    done = run("install", "--if-supported")
    assert (done.exit_code, "aarch64" in done.output) == (0, True)
