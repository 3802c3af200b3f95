"""Engines that compute logits for the gateway: a Triton server, or ONNX Runtime in this process."""
