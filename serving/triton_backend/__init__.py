"""What is copied into a Triton model repository for the `python` backend."""
