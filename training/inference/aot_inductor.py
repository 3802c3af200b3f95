"""Run a bundle's `model.pt2`: the network compiled by AOTInductor for a CPU, as a library that PyTorch loads."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from training.inference.forward import torch_forward
from vision.bundle import Bundle
from vision.engine import Logits
from vision.errors import EngineUnavailable

__all__ = ["AOT_INDUCTOR_ON_CPU", "AotInductorEngine", "find_target_cpu", "load_aot_inductor"]

AOT_INDUCTOR_ON_CPU = "aot-inductor-cpu"
"""The backend's name, for certificates."""
_PORTABLE_TARGET = "x86-64-v3"
"""Any x86-64 CPU with AVX2; psABI's level, which GCC and Clang know by this name."""


def find_target_cpu() -> str | None:
    """Return what this machine can compile for and run: `x86-64-v3`, or the name of another architecture.

    None on an x86-64 CPU without AVX2.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    return _PORTABLE_TARGET if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else None


def load_aot_inductor(path: Path) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """The compiled network: (N, S, S, 3) uint8 photos to the tensors of `vision.model.Outputs`.

    The file is a library, whose code runs here: load only what is trusted.

    Raises:
        EngineUnavailable: it cannot be loaded.
    """
    try:
        # `torch._inductor.aoti_load_package` also compiles a program, to compare this CPU with the other one.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except RuntimeError as error:
        raise EngineUnavailable(
            f"{path} cannot be loaded by PyTorch {torch.__version__}: {str(error).splitlines()[0]}"
        ) from error
    return lambda photos_nhwc: loader.run([photos_nhwc])


class AotInductorEngine:
    """The `vision.engine.Engine` of a bundle's `model.pt2`."""

    backend = AOT_INDUCTOR_ON_CPU

    def __init__(self, bundle: Bundle) -> None:
        """Raises:
        BundleError: the bundle has no `model.pt2`.
        EngineUnavailable: it was compiled for another CPU, or cannot be loaded.
        """
        path = bundle.aot_inductor_path
        compiled_for = bundle.info.parity.get("aot_inductor", {}).get("compiled_for")
        if compiled_for != find_target_cpu():
            raise EngineUnavailable(
                f"{path} was compiled for {compiled_for}, which this machine ({platform.machine()}, "
                f"{torch.backends.cpu.get_cpu_capability()}) is not; export the run here with --pt2"
            )
        self._infer = torch_forward(load_aot_inductor(path))

    def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return self._infer(photos_nhwc)
