"""Intervals, paired tests, sequential tests, drift."""
