"""Profiles for the capacity simulation."""

from serving.capacity.profile import Profile

FREE = {1: 0.0, 64: 0.0}
"""A model that costs nothing, so that the cores are the only queue."""


def create_profile(decode_ms=0.0, model_ms=None, gateway_ms=0.0):
    return Profile(machine="a test", decode_ms=decode_ms, model_ms=model_ms or FREE, gateway_ms=gateway_ms)
