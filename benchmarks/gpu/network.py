"""Measure the model alone, for photos in GPU memory, by batch size and precision."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from training.export.precision import Fp16Classifier
from training.inference.network import load_bundle_model
from vision.bundle import Bundle

__all__ = ["BATCHES", "CudaGraph", "Network", "create_networks", "photos_per_s"]

BATCHES = (1, 8, 32, 128, 256)
SECONDS = 1.5
Network = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class Variant(NamedTuple):
    name: str
    network: Network
    batches: tuple[int, ...]


def create_networks(bundle: Bundle, device: torch.device, *, batches: tuple[int, ...] = BATCHES) -> Iterator[Variant]:
    """Yield fp32, TF32, fp16, each recorded as a CUDA graph, and fp16 compiled; the fastest last."""
    for name, half, tf32 in (("fp32", False, False), ("tf32", False, True), ("fp16", True, True)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        trained = load_bundle_model(bundle)
        model = (Fp16Classifier(trained) if half else trained).to(device).eval()
        yield Variant(name, _wrap_inference_mode(model), batches)
        if half and device.type == "cuda":
            model.compile(dynamic=False)
            yield Variant("fp16 compiled", _wrap_inference_mode(model), batches[-2:-1])


def _wrap_inference_mode(model: torch.nn.Module) -> Network:
    def run(photos_nhwc: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return tuple(model(photos_nhwc))

    return run


class CudaGraph:
    """A network's kernels for one batch size, recorded as a CUDA graph; smaller batches are padded.

    For threads: one at a time has the buffers.
    """

    def __init__(self, run: Network, photos: torch.Tensor) -> None:
        self._photos = photos.clone()
        self._lock = threading.Lock()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(self._photos)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = run(self._photos)

    def replay(self) -> None:
        self._graph.replay()

    def __call__(self, photos_nhwc: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._lock:
            self._photos[: len(photos_nhwc)] = photos_nhwc
            self._graph.replay()
            outputs = tuple(output[: len(photos_nhwc)].clone() for output in self._outputs)
            # The next thread's stream does not wait for this one's.
            torch.cuda.current_stream().synchronize()
        return outputs


def photos_per_s(run: Network, photos: torch.Tensor, *, seconds: float = SECONDS) -> float:
    """Return photos/s of a repeated batch; on a GPU its kernels are recorded once and replayed."""
    on_gpu = photos.device.type == "cuda"
    once: Callable[[], object] = CudaGraph(run, photos).replay if on_gpu else lambda: run(photos)
    for _ in range(5):
        once()
    _synchronize(photos.device)
    number, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < seconds:
        for _ in range(10):
            once()
        # The host is not ahead by more than ten batches.
        _synchronize(photos.device)
        number += 10 * len(photos)
    return number / (time.monotonic() - began_s)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
