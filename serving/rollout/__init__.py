"""Releases, traffic split, canary, health."""
