"""Engines that the gateway calls: Triton, or ONNX Runtime in this process."""
