"""The model repository and the local Triton process."""
