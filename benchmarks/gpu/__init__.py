"""What one GPU gives, part by part and together: `python -m benchmarks.gpu`."""
