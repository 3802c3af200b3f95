"""Python code that runs inside Triton; copied into the model repository."""
