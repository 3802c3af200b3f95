"""TorchScript export, deprecated upstream since torch 2.11: delete this module when torch removes it."""

import warnings
from pathlib import Path

import torch

__all__ = ["export_torchscript", "load_torchscript"]


def export_torchscript(model: torch.nn.Module, example_nhwc: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=Warning)
        warnings.filterwarnings("ignore", message=r".*(trace|Trac).*", category=Warning)
        with torch.no_grad():
            traced = torch.jit.trace(model, example_nhwc, check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), str(path))


def load_torchscript(path: Path) -> torch.nn.Module:
    """The exported module; only for files this process wrote, since TorchScript archives are pickles."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=Warning)
        module: torch.nn.Module = torch.jit.load(str(path), map_location="cpu")
    return module
