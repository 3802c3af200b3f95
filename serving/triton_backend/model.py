"""ONNX Runtime inside Triton's Python backend; copied beside `model.onnx` and run by Triton's own Python.

Needs numpy 1.26: under numpy 2 this Triton line hands over zeros without any error.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ("category_logits", "brand_logits", "embedding")


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["num_threads"]["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        side = self._session.get_inputs()[0].shape[1]
        self._photos_at_once = int(parameters["photos_at_once"]["string_value"])
        # All that it will ever be given to compute in one go.
        for num_photos in range(1, self._photos_at_once + 1):
            self._run(np.zeros((num_photos, side, side, 3), np.uint8))

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        photos = pb_utils.get_input_tensor_by_name(request, "photos").as_numpy()
        step = self._photos_at_once
        parts = [self._run(photos[first : first + step]) for first in range(0, len(photos), step)]
        outputs = parts[0] if len(parts) == 1 else [np.concatenate(rows) for rows in zip(*parts)]  # noqa: B905  # Python 3.8 has no strict
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, rows) for name, rows in zip(OUTPUTS, outputs)])  # noqa: B905

    def _run(self, photos):
        return self._session.run(list(OUTPUTS), {"photos": photos})
