"""From a trained run to a bundle: ONNX, TorchScript, precision, recalibration."""
