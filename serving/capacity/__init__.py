"""How many gateways and GPUs a load needs: a simulation of the service's two queues, from measured costs."""

__all__ = ["DEFAULT_GATEWAY_MS"]

DEFAULT_GATEWAY_MS = 3.6
"""CPU time of the gateway's processes, decode workers excluded, for a listing of one photo at 32 callers: the median of
`benchmarks.serving`, `cpu_ms_per_photo` of `gateway c32`. Photos of one listing share a part (`gateway listing4`)."""
