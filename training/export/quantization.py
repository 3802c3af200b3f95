"""Static INT8 quantization of an exported model for CPUs by ONNX Runtime, with activation ranges from real photos."""

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from vision.engine import INPUT_NAME

__all__ = ["METHODS", "Method", "export_quantized_onnx"]

Method = Literal["percentile", "entropy", "minmax"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Methods of finding the range of an activation from a sample of its values."""
_CALIBRATION_BATCH_SIZE = 8
"""Photos whose activations are in memory at once while histograms are built: 130 MB per photo of 224 px."""
_QUANTIZED_OPS = ("Conv", "Add", "Mul", "GlobalAveragePool", "AveragePool", "MaxPool", "Concat", "Clip", "Relu")
"""Quantized operations. The heads' matrix products stay in fp32: they are cheap, and rounding them changes logits."""


def export_quantized_onnx(model: Path, photos_nhwc: npt.NDArray[np.uint8], path: Path, *, method: Method) -> None:
    """Write a QDQ model with uint8 activations and per-channel int8 weights of seven bits.

    Seven bits, because processors without VNNI add pairs of products in 16 bits, which eight would overflow (ONNX
    Runtime, "Quantize ONNX models", section on U8S8).

    Args:
        model: the fp32 export.
        photos_nhwc: (N, S, S, 3) photos of the training split.
        path: the new model.
        method: how activation ranges are found.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
        "minmax": CalibrationMethod.MinMax,
    }
    num_photos = len(photos_nhwc) - len(photos_nhwc) % _CALIBRATION_BATCH_SIZE or len(photos_nhwc)
    with tempfile.TemporaryDirectory() as folder, _silence_quantizer():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            _PhotoReader(photos_nhwc[:num_photos]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED_OPS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[method],
            extra_options={"CalibStridedMinMax": min(_CALIBRATION_BATCH_SIZE, num_photos)},
        )


@contextmanager
def _silence_quantizer() -> Iterator[None]:
    """Drop what ONNX Runtime prints, warns of, and logs as information by the root logger: lines for most tensors."""

    def is_kept(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or "onnxruntime" not in record.pathname

    root = logging.getLogger()
    root.addFilter(is_kept)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(is_kept)


class _PhotoReader:
    """A `CalibrationDataReader` that gives the calibrator photos one at a time."""

    def __init__(self, photos_nhwc: npt.NDArray[np.uint8]) -> None:
        self._photos = photos_nhwc
        self._remaining: Iterator[int] = iter(range(len(photos_nhwc)))

    def __len__(self) -> int:
        return len(self._photos)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._remaining = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        at = next(self._remaining, None)
        return None if at is None else {INPUT_NAME: self._photos[at : at + 1]}
