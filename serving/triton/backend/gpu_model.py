"""TorchScript on a GPU inside Triton's Python backend; copied beside `model.pt` as `model.py`.

A request has photos as pixels (`photos`) or encoded (`encoded`, rows padded to the longest, with `sizes`). Plain JPEGs
are decoded on the GPU, all those of a batch together. Photos that the GPU cannot decode go to the project's decoder, in
decode workers that a photo may crash. The row of a photo that cannot be used is NaN, and `photo_errors` has what was
wrong with it.

One CUDA graph for each batch size replaces hundreds of kernel launches.

Needs numpy 1.26 with Triton 2.51, as `model.py` does.
"""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

CODE = Path(__file__).resolve().parent / "code"
# At the end of the path, so that it hides no package of this environment.
sys.path.append(str(CODE))

from vision.decoding import decoder_group, fork_client, fork_server  # noqa
from vision.images.gpu_decoding import DeviceDecoder, find_plain_crop  # noqa: E402

OUTPUTS = ("category_logits", "brand_logits", "embedding", "scope_score")
"""In the order of the network; one of an earlier version lacks the last."""


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = torch.device("cuda", int(args["model_instance_device_id"])) if on_gpu else torch.device("cpu")
        # By default convolutions round fp32 to ten bits, which the model was not certified with.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        path = os.path.join(args["model_repository"], args["model_version"], "model.pt")
        self._settings = fork_server.DecodeSettings.from_json(parameters["decoding"])
        self._side = self._settings.preprocessing.input_px
        with _use_device(self._device):
            self._network = _Network(path, self._device, self._side, int(config["max_batch_size"]))
            self._device_decoder = DeviceDecoder(self._device, parameters.get("gpu_decoder", "torchvision"))
        self._decoders = _create_decoders(parameters, self._settings)

    def execute(self, requests):
        with _use_device(self._device):
            return self._infer_requests(requests)

    def _infer_requests(self, requests):
        parsed = [_Request(request) for request in requests]
        encoded = [photo for request in parsed for photo in request.encoded]
        pixels, errors = self._decode_photos(encoded) if encoded else (self._create_empty_pixels(), [])
        pixels = torch.cat([pixels, *(torch.from_numpy(r.photos).to(self._device) for r in parsed if not r.encoded)])
        rows = self._network(pixels)
        # The order of the rows: first the encoded photos of all requests, then the pixels of all requests.
        at = {True: 0, False: len(encoded)}
        responses = []
        for request in parsed:
            is_encoded = bool(request.encoded)
            end = at[is_encoded] + request.num_photos
            row_errors = errors[at[is_encoded] : end] if is_encoded else None
            responses.append(_build_response([row[at[is_encoded] : end] for row in rows], row_errors))
            at[is_encoded] = end
        return responses

    def finalize(self):
        self._decoders.close()

    def _create_empty_pixels(self):
        return torch.empty(0, self._side, self._side, 3, dtype=torch.uint8, device=self._device)

    def _decode_photos(self, photos):
        """Return (N, S, S, 3) uint8 on the device, black where a photo cannot be used, and what was wrong with each."""
        crops = [find_plain_crop(photo, at_least_px=self._side, limits=self._settings.limits) for photo in photos]
        cpu_rows = [index for index, crop in enumerate(crops) if crop is None]
        gpu_rows = [index for index, crop in enumerate(crops) if crop]
        # The cores decode some photos while the device decodes the others.
        deadline_s = self._decoders.compute_deadline_s()
        cpu_batch = self._decoders.begin([photos[index] for index in cpu_rows], deadline_s=deadline_s)
        pixels = torch.zeros(len(photos), self._side, self._side, 3, dtype=torch.uint8, device=self._device)
        rejected = []
        if gpu_rows:
            joined = torch.frombuffer(bytearray(b"".join(photos[index] for index in gpu_rows)), dtype=torch.uint8)
            gpu_crops = [crops[index] for index in gpu_rows]
            pixels[gpu_rows], rejected = self._device_decoder.decode_crops(
                joined, gpu_crops, self._create_empty_pixels(), photo_px=self._side
            )
            rejected = [gpu_rows[index] for index in rejected]
        decoded = {cpu_rows[number]: result for number, result in cpu_batch}
        retry_batch = self._decoders.begin([photos[index] for index in rejected], deadline_s=deadline_s)
        decoded |= {rejected[number]: result for number, result in retry_batch}
        errors = [b""] * len(photos)
        for index, found in decoded.items():
            if isinstance(found, np.ndarray):
                pixels[index] = torch.from_numpy(found).to(self._device)
            else:
                errors[index] = f"{type(found).__name__}\n{found}".encode()
        return pixels, errors


def _use_device(device):
    """Make the device current: graphs are recorded and replayed on the current device, not on that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class _Request:
    def __init__(self, request):
        encoded = pb_utils.get_input_tensor_by_name(request, "encoded")
        self.photos, self.encoded = None, []
        if encoded is None:
            self.photos = pb_utils.get_input_tensor_by_name(request, "photos").as_numpy()
        else:
            sizes = pb_utils.get_input_tensor_by_name(request, "sizes").as_numpy()
            self.encoded = [row[:size].tobytes() for row, size in zip(encoded.as_numpy(), sizes[:, 0], strict=True)]
        self.num_photos = len(self.encoded) if self.encoded else len(self.photos)


def _build_response(rows, errors):
    """The response to one request; rows whose photo cannot be used are NaN. `errors` is None for a request of
    pixels."""
    # The scope score has one number a photo; Triton wants a second axis.
    rows = [np.array(row if row.ndim > 1 else row[:, None]) for row in rows]
    unusable = [index for index, error in enumerate(errors or ()) if error]
    for row in rows:
        row[unusable] = np.nan
    tensors = [pb_utils.Tensor(name, row) for name, row in zip(OUTPUTS, rows, strict=False)]
    if errors is not None:
        tensors.append(pb_utils.Tensor("photo_errors", np.array(errors, dtype=object)[:, None]))
    return pb_utils.InferenceResponse(tensors)


class _Network:
    """The exported model, for batches of any size up to the largest; on a GPU a graph for every power of two."""

    def __init__(self, path, device, side, largest):
        with warnings.catch_warnings():
            # TorchScript is deprecated since torch 2.11, but it is the format of the bundle.
            warnings.simplefilter("ignore")
            self._module = torch.jit.load(path, map_location=device).eval()
        self._device, self._largest = device, largest
        self._graphs = {}
        black = torch.zeros(largest, side, side, 3, dtype=torch.uint8, device=device)
        self._run(black[:1])
        if device.type == "cuda":
            # One graph runs at a time, so all share one memory pool; the largest is recorded first and sizes it.
            pool = torch.cuda.graph_pool_handle()
            sizes = [2**exponent for exponent in range(largest.bit_length())]
            recorded = {size: _Graph(self._run, black[:size].clone(), pool) for size in reversed(sizes)}
            self._graphs = dict(sorted(recorded.items()))

    def __call__(self, pixels):
        """Return the outputs, float32 arrays in host memory."""
        parts = [self._run_chunk(part) for part in pixels.split(self._largest)]
        return [torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True)]

    def _run_chunk(self, pixels):
        size = next((size for size in self._graphs if size >= len(pixels)), None)
        return self._run(pixels) if size is None else self._graphs[size](pixels)

    def _run(self, pixels):
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return tuple(tensor.float() for tensor in self._module(pixels))


class _Graph:
    """The kernels of one batch size, recorded once."""

    def __init__(self, run, pixels, pool):
        self._pixels = pixels
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(pixels)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._outputs = run(pixels)

    def __call__(self, pixels):
        self._pixels[: len(pixels)] = pixels
        self._graph.replay()
        # Copies, because the next batch overwrites the outputs.
        return tuple(output[: len(pixels)].clone() for output in self._outputs)


def _create_decoders(parameters, settings):
    if parameters["isolate"] != "true":
        return decoder_group.InlineDecoderGroup(settings)
    server = fork_client.ForkServer(settings, [parameters["python"]], path=CODE)
    return decoder_group.DecoderGroup(server, settings, size=int(parameters["num_decoders"]))
