"""ONNX Runtime inside Triton's Python backend; copied beside `model.onnx` and run by Triton's own Python.

Needs numpy 1.26: under numpy 2 this Triton line hands over zeros without any error.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ("category_logits", "brand_logits", "embedding")
WARM_UP_BATCHES = (1, 2, 8)


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["num_threads"]["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        side = self._session.get_inputs()[0].shape[1]
        for num_photos in WARM_UP_BATCHES:
            self._run(np.zeros((num_photos, side, side, 3), np.uint8))

    def execute(self, requests):
        photos = [pb_utils.get_input_tensor_by_name(request, "photos").as_numpy() for request in requests]
        ends = np.cumsum([len(batch) for batch in photos])[:-1]
        by_output = [np.split(output, ends) for output in self._run(np.concatenate(photos))]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, rows) for name, rows in zip(OUTPUTS, answer)])  # noqa: B905  # Python 3.8 has no strict
            for answer in zip(*by_output)  # noqa: B905
        ]

    def _run(self, photos):
        return self._session.run(list(OUTPUTS), {"photos": photos})
