"""Export to `model.pt2`: torch.export's program, compiled by AOTInductor for a CPU."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.inference.aot_inductor import find_target_cpu
from vision.errors import ListingVisionError

__all__ = ["export_aot_inductor", "require_compiler"]

_NO_COMPILER = "model.pt2 needs a C++ compiler, such as g++; install one, name it in CXX, or export without --pt2"


class _Flat(torch.nn.Module):
    """The network with a plain tuple as its outputs: a package cannot hold our own types."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, photos_nhwc: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(photos_nhwc))


def require_compiler() -> str:
    """Check that a model can be compiled here, before hours of work; return the CPU that it will be compiled for.

    Raises:
        ListingVisionError: there is no C++ compiler, or the CPU lacks AVX2.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    target = find_target_cpu()
    if target is None:
        raise ListingVisionError("model.pt2 is compiled for CPUs with AVX2, which this one lacks; export without --pt2")
    with _report_compiler():
        get_cpp_compiler()
    return target


def export_aot_inductor(model: torch.nn.Module, example_nhwc: torch.Tensor, path: Path) -> str:
    """Write the model as an AOTInductor package with a dynamic batch; return the CPU that it was compiled for.

    Compiling takes from half a minute to some minutes.

    Args:
        model: in evaluation mode, on the CPU.
        example_nhwc: (2, S, S, 3) uint8; an example of one photo would freeze the batch.
        path: of the new file.

    Raises:
        ListingVisionError: there is no C++ compiler, or it fails.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    target = require_compiler()
    batch = torch.export.Dim("batch", min=1, max=1024)
    # By default the code is for this very CPU and does not run on an older one. Convolutions and products, most of the
    # work, are PyTorch's own and choose by the CPU that they run on.
    portable = {"cpp.march": target, "cpp.simdlen": 256} if target.startswith("x86") else {}
    with torch.no_grad():
        program = torch.export.export(_Flat(model.eval()), (example_nhwc,), dynamic_shapes=({0: batch},))
    # A folder of our own: that of all runs has a name in /tmp that others can take first, and stays.
    with _report_compiler(), tempfile.TemporaryDirectory() as folder, fresh_cache(dir=folder):
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=portable)
    return target


@contextmanager
def _report_compiler() -> Iterator[None]:
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    try:
        yield
    except InvalidCxxCompiler as error:
        raise ListingVisionError(_NO_COMPILER) from error
    except InductorError as error:
        if not isinstance(error.inner_exception, CppCompileError):
            raise
        raise ListingVisionError(
            f"the C++ compiler fails, so there is no model.pt2: {str(error).strip().splitlines()[-1]}; install its "
            "headers, name another one in CXX, or export without --pt2"
        ) from error
