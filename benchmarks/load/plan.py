"""Which load is sent, and for how long."""

from dataclasses import dataclass

__all__ = ["LoadPlan"]


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Give `num_callers` for a closed loop or `rate_per_s` for an open one."""

    seconds: float
    """Measured time, after the warm-up; math.inf runs until `stop` is set."""
    num_callers: int | None = None
    """Closed loop: number of callers, each sending its next call when its last one ends."""
    rate_per_s: float | None = None
    """Open loop: mean rate of the Poisson process of calls."""
    warmup_s: float = 1.0
    """Load before the measured time, so that queues have filled."""
    num_photos_per_listing: int = 1
    deadline_s: float = 10.0
    """Deadline of each call, counted from when it was due."""
    num_connections: int = 8
    """Number of connections; each reaches one of the gateway processes that share a port."""
    ramp_s: float = 0.0
    """Time over which connections are opened one after another; callers of a closed loop start with them."""
    max_in_flight: int = 512
    """Open loop: calls beyond so many in flight are counted and not sent."""
    backoff_s: float = 0.05
    """Closed loop: pause of a caller after a failed call."""
    hostile_share: float = 0.0
    """Share of calls whose listing holds a hostile photo beside its good ones."""
    short_deadline_share: float = 0.0
    """Share of calls with a deadline from `short_deadline_s`; their latencies are not reported."""
    short_deadline_s: tuple[float, float] = (0.005, 0.1)
    """Least and largest short deadline, drawn uniformly."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.num_callers is None) == (self.rate_per_s is None):
            raise ValueError("give num_callers for a closed loop or rate_per_s for an open one, not both")
        for name in ("num_callers", "rate_per_s", "num_photos_per_listing", "num_connections", "max_in_flight"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value} is not above 0")
        for name in ("seconds", "deadline_s", "warmup_s", "ramp_s", "backoff_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)} is below 0")
        for name in ("hostile_share", "short_deadline_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is outside 0..1")
        least_s, most_s = self.short_deadline_s
        if not 0 < least_s <= most_s:
            raise ValueError(f"short_deadline_s {self.short_deadline_s} is not a range above 0")

    def __str__(self) -> str:
        load = f"{self.num_callers} callers" if self.num_callers else f"{self.rate_per_s:g} calls/s, open loop"
        return f"{load}, {self.seconds:g} s after {self.warmup_s:g} s of warm-up, deadline {self.deadline_s:g} s"
