"""Inputs that nobody thought of, for what meets hostile bytes."""
