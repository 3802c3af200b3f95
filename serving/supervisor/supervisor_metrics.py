"""Metrics of the supervisor itself, beside those of its gateway processes."""

import prometheus_client

__all__ = ["SupervisorMetrics"]


class SupervisorMetrics:
    """Counters and gauges of one supervisor."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self.restarts = prometheus_client.Counter(
            "listing_vision_restarts",
            "Restarts after an exit or a failed health check, by component: gateway, http, triton, or its model.",
            ["component"],
            registry=registry,
        )
        for component in ("gateway", "http", "triton", "model"):  # a rate needs a series that begins at 0
            self.restarts.labels(component)
        self.canaries_removed = prometheus_client.Counter(
            "listing_vision_canaries_removed",
            "Canaries that were removed because they were unhealthy.",
            registry=registry,
        )
        self.gateway_processes_desired = prometheus_client.Gauge(
            "listing_vision_gateway_processes_desired", "Gateway processes that should serve.", registry=registry
        )
        self.engine_fallback = prometheus_client.Gauge(
            "listing_vision_engine_fallback",
            "1 if the gateway processes run the model themselves because Triton could not be started.",
            registry=registry,
        )
        self.triton_unpatched = prometheus_client.Gauge(
            "listing_vision_triton_unpatched",
            "1 if the Triton on another machine has known security faults, or did not tell its version at the start.",
            registry=registry,
        )
        self.triton_degraded = prometheus_client.Gauge(
            "listing_vision_triton_degraded",
            "1 while the Triton that runs here fails the golden photos, or a model of it lacks processes.",
            registry=registry,
        )
