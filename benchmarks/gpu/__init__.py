"""Measure one GPU, part by part and together: `python -m benchmarks.gpu`."""
