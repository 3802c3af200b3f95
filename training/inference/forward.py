"""Trained networks and exported graphs as functions from photos to logits."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from training.inference.predictions import Infer
from vision.engine import INPUT_NAME, OUTPUT_NAMES, Logits

__all__ = ["onnx_forward", "torch_forward"]


def torch_forward(module: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> Infer:
    """Run a network as it is: on its device, in its mode, without gradients."""

    def forward(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(photos_nhwc))
        return Logits.from_outputs({name: part.numpy() for name, part in zip(OUTPUT_NAMES, outputs, strict=False)})

    return forward


def onnx_forward(path: Path, *, num_threads: int | None = None) -> Infer:
    """Run an ONNX file on the CPU.

    Args:
        num_threads: threads inside an operator; None leaves the number to ONNX Runtime.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as in vision/engine.py
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda photos_nhwc: Logits.from_outputs(
        dict(zip(names, session.run(names, {INPUT_NAME: photos_nhwc}), strict=True))
    )
