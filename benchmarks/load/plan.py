"""What load is sent, how, and for how long."""

from dataclasses import dataclass

__all__ = ["LoadPlan"]


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Give `num_callers` for a closed loop or `rate_per_s` for an open one."""

    seconds: float
    """Measured time, after the warm-up; math.inf goes on until `run_load` is told to stop."""
    num_callers: int | None = None
    """Closed loop: how many callers, each sending its next call when its last is answered."""
    rate_per_s: float | None = None
    """Open loop: mean rate of the Poisson process by which calls come."""
    warmup_s: float = 1.0
    """Load before the measured time, so that it begins with queues as deep as they will be."""
    num_photos_per_listing: int = 1
    deadline_s: float = 10.0
    """Of each call, from when it should have been sent."""
    num_connections: int = 8
    """Gateway processes that listen on one port share connections, not calls: one connection reaches one of them."""
    ramp_s: float = 0.0
    """Connections are opened one after another over this time, callers of the closed loop beginning with them."""
    max_in_flight: int = 512
    """Open loop: calls beyond so many unanswered ones are not sent, and counted."""
    backoff_s: float = 0.05
    """Closed loop: how long a caller waits after a call that was not answered; a refusal costs a server little."""
    hostile_share: float = 0.0
    """Share of calls whose listing holds a hostile photo beside its good ones."""
    short_deadline_share: float = 0.0
    """Share of calls with a deadline from `short_deadline_s`; their latencies are left out, being cut off."""
    short_deadline_s: tuple[float, float] = (0.005, 0.1)
    """Least and most of these, drawn uniformly."""
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
