"""Metrics, traces, stage times, the admin port."""
