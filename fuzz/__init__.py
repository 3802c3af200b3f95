"""Fuzzing of the code that parses bytes from outside."""
