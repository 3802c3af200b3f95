"""Run an exported model: the engine interface, and ONNX Runtime in this process."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vision.bundle import ONNX_ON_CPU, Bundle
from vision.errors import EngineBroken, EngineUnavailable
from vision.runtime.cpus import count_usable_cores

__all__ = ["INPUT_NAME", "OUTPUT_NAMES", "SCOPE_NAME", "Engine", "Logits", "OnnxEngine", "check_golden"]

INPUT_NAME = "photos"
SCOPE_NAME = "scope_score"
OUTPUT_NAMES = ("category_logits", "brand_logits", "embedding", SCOPE_NAME)
"""Outputs of an exported model; models of earlier versions lack the last."""

GOLDEN_TOLERANCE = 0.05
"""Largest accepted difference of a logit from the exported model's own on other hardware and kernels."""
LOW_PRECISION_GOLDEN_TOLERANCE = 0.25
"""The same for fp16 and INT8, where kernels round each layer differently."""


_PROVIDERS: tuple[tuple[str, dict[str, str]], ...] = (
    # TF32 is on by default and rounds products to ten bits, which is not the certified precision.
    ("CUDAExecutionProvider", {"use_tf32": "0"}),
    ("CPUExecutionProvider", {}),
)


class Logits(NamedTuple):
    """float32 arrays of P photos."""

    category: npt.NDArray[np.float32]
    """(P, C)."""
    brand: npt.NDArray[np.float32]
    """(P, B); column 0 is 'no brand'."""
    embedding: npt.NDArray[np.float32]
    """(P, D); (P, 0) where it was not asked for."""
    scope: npt.NDArray[np.float32]
    """(P,) scope scores, higher for photos that look like the training set's; NaN where the model has none."""

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, npt.NDArray[np.float32]]) -> "Logits":
        """Build the logits from outputs by name; embedding and scope score may be missing."""
        num_photos = len(outputs["category_logits"])
        return cls(
            category=outputs["category_logits"],
            brand=outputs["brand_logits"],
            embedding=outputs.get("embedding", np.empty((num_photos, 0), np.float32)),
            scope=outputs.get(SCOPE_NAME, np.full(num_photos, np.nan, np.float32)).reshape(num_photos),
        )


class Engine(Protocol):
    backend: str
    """Name of what computes the logits; guarantees hold for one backend."""

    def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        """Logits of (P, S, S, 3) uint8 photos, S being the bundle's input_px."""
        ...


class OnnxEngine:
    """ONNX Runtime in this process, on CUDA where this build of it and the machine have one."""

    def __init__(self, bundle: Bundle, *, num_threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise EngineUnavailable(
                "onnxruntime is not installed; install the 'local' extra, or give the address of a server"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or count_usable_cores()
        # Spinning worker threads take cores from photo decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in _PROVIDERS if provider[0] in available]
        self._session = onnxruntime.InferenceSession(str(bundle.onnx_path), options, providers=providers)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.backend = "onnxruntime-cuda" if "CUDAExecutionProvider" in self._session.get_providers() else ONNX_ON_CPU

    def infer(self, photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        return Logits.from_outputs(
            dict(zip(self._outputs, self._session.run(self._outputs, {INPUT_NAME: photos_nhwc}), strict=True))
        )


def check_golden(bundle: Bundle, logits: Logits, *, which: slice = slice(None)) -> None:
    """Compare logits of the bundle's golden photos, or some of them, with those stored at export.

    READY is no proof: a Triton with an incompatible NumPy reports READY and returns zeros.

    Raises:
        EngineBroken: a logit differs by more than the tolerance, or the shape differs.
    """
    tolerance = GOLDEN_TOLERANCE if bundle.info.precision == "fp32" else LOW_PRECISION_GOLDEN_TOLERANCE
    compared = [
        ("category_logits", logits.category, bundle.golden.category_logits[which]),
        ("brand_logits", logits.brand, bundle.golden.brand_logits[which]),
    ]
    # An engine that has not asked the model for its outputs yet does not request the score.
    if not (np.isnan(bundle.golden.scope).all() or np.isnan(logits.scope).all()):
        compared.append((SCOPE_NAME, logits.scope, bundle.golden.scope[which]))
    for name, actual, expected in compared:
        if actual.shape != expected.shape:
            raise EngineBroken(f"golden photos: {name} has shape {actual.shape}, not {expected.shape}")
        difference = float(np.abs(actual - expected).max())
        if not difference <= tolerance:
            raise EngineBroken(
                f"golden photos: {name} differs by {difference:.3g} from the exported model, more than {tolerance}"
            )
