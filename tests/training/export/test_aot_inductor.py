import importlib
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from training.export.aot_inductor import export_aot_inductor, require_compiler
from training.export.export import BATCH_SIZES, compare_export, export_bundle
from training.inference.aot_inductor import load_aot_inductor
from training.inference.forward import onnx_forward, torch_forward
from vision.errors import ListingVisionError


def test_the_compiled_network_answers_like_the_other_export_at_every_batch(pt2_bundle):
    photos = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), 64, 64, 3), np.uint8)
    compiled = torch_forward(load_aot_inductor(pt2_bundle.aot_inductor_path))
    report = compare_export(onnx_forward(pt2_bundle.onnx_path), compiled, photos, name="AOTInductor")
    assert report["answers_agreeing"] == 1
    answered = compiled(photos)
    assert len(np.unique(answered.category, axis=0)) > 1
    assert not np.isnan(answered.scope).any()
    recorded = pt2_bundle.info.parity["aot_inductor"]
    assert recorded["answers_agreeing"] == 1
    assert recorded["compiled_for"] == require_compiler()


@contextmanager
def use_compiler(command):
    """As CXX does, which torch reads when it is imported; monkeypatch cannot restore its configuration."""
    with importlib.import_module("torch._inductor.config").patch({"cpp.cxx": (None, command)}):
        yield


def test_without_a_compiler_nothing_is_begun(trained_run, tmp_path):
    said = "install one, name it in CXX, or export without --pt2"
    with use_compiler("no-such-compiler"), pytest.raises(ListingVisionError, match=said):
        export_bundle(trained_run, tmp_path / "new", model_name="x", pt2=True)
    assert not list(tmp_path.iterdir())
    require_compiler()


def test_a_compiler_that_fails_is_reported_with_its_words(tmp_path):
    compiler = tmp_path / "broken-g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "no headers here" >&2; exit 1; }\n')
    compiler.chmod(0o755)

    class Mean(torch.nn.Module):
        def forward(self, photos_nhwc):
            return (photos_nhwc.float().mean(dim=(1, 2)),)

    photos = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    said = re.escape("the C++ compiler fails, so there is no model.pt2: no headers here; install")
    with use_compiler(str(compiler)), pytest.raises(ListingVisionError, match=said):
        export_aot_inductor(Mean(), photos, tmp_path / "model.pt2")


def test_an_old_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(ListingVisionError, match="AVX2, which this one lacks; export without --pt2"):
        require_compiler()
