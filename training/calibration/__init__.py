"""Temperatures and certified thresholds."""
