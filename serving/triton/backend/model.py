"""ONNX Runtime inside Triton's Python backend; copied beside `model.onnx` and run by Triton's own Python.

A request has photos as pixels (`photos`) or encoded (`encoded`, rows padded to the longest, with `sizes`). Encoded
photos are decoded here by the project's decoder, in decode workers that a photo may crash, several at once where a
listing has several. The row of a photo that cannot be used is NaN, and `photo_errors` has what was wrong with it.

Needs numpy 1.26: with numpy 2 this version of Triton passes zeros without any error.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

CODE = Path(__file__).resolve().parent / "code"
# At the end of the path, so that it hides no package of this environment.
sys.path.append(str(CODE))

from vision.decoding import decoder_group, fork_client, fork_server  # noqa


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["num_threads"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        side = self._session.get_inputs()[0].shape[1]
        self._preferred_batch_size = int(parameters["preferred_batch_size"])
        # Warm up every batch size that will be computed.
        for num_photos in range(1, self._preferred_batch_size + 1):
            widths = [output.shape[1] for output in self._run(np.zeros((num_photos, side, side, 3), np.uint8))]
        self._unusable = [np.full((1, width), np.nan, np.float32) for width in widths]
        self._decoders = _create_decoders(parameters)

    def execute(self, requests):
        return [self._infer_request(request) for request in requests]

    def finalize(self):
        self._decoders.close()

    def _infer_request(self, request):
        encoded = pb_utils.get_input_tensor_by_name(request, "encoded")
        if encoded is None:
            photos = pb_utils.get_input_tensor_by_name(request, "photos").as_numpy()
            step = self._preferred_batch_size
            rows, errors = [self._run(photos[at : at + step]) for at in range(0, len(photos), step)], []
        else:
            sizes = pb_utils.get_input_tensor_by_name(request, "sizes").as_numpy()
            yields = json.loads(request.parameters() or "{}").get("yields", False)
            rows, errors = self._decode_and_run(encoded.as_numpy(), sizes, yields)
        outputs = rows[0] if len(rows) == 1 else [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        tensors = [pb_utils.Tensor(name, output) for name, output in zip(self._outputs, outputs, strict=True)]
        if errors:
            tensors.append(pb_utils.Tensor("photo_errors", np.array(errors, dtype=object)[:, None]))
        return pb_utils.InferenceResponse(tensors)

    def _decode_and_run(self, encoded, sizes, yields):
        """Compute photo by photo, while others are decoded."""
        photos = [row[:size].data for row, size in zip(encoded, sizes[:, 0], strict=True)]
        rows, errors = [self._unusable] * len(photos), [b""] * len(photos)
        for number, result in self._decoders.begin(photos, yields=yields):
            if isinstance(result, np.ndarray):
                rows[number] = self._run(result[None])
            else:
                errors[number] = f"{type(result).__name__}\n{result}".encode()
        return rows, errors

    def _run(self, photos):
        outputs = self._session.run(self._outputs, {"photos": photos})
        # The scope score has one number a photo; Triton wants a second axis.
        return [output if output.ndim > 1 else output[:, None] for output in outputs]


def _create_decoders(parameters):
    settings = fork_server.DecodeSettings.from_json(parameters["decoding"])
    if parameters["isolate"] != "true":
        return decoder_group.InlineDecoderGroup(settings)
    server = fork_client.ForkServer(settings, [parameters["python"]], path=CODE)
    return decoder_group.DecoderGroup(server, settings, size=int(parameters["num_decoders"]))
