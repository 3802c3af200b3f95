"""Results of all calls, kept one by one, so that percentiles are exact."""

import functools
import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from benchmarks.load.plan import LoadPlan

__all__ = ["BUCKET_S", "CALL_RESULTS", "CallRecorder", "CallResult", "LoadReport"]

CallResult = Literal["ok", "wrong", "refused", "expired", "given_up", "failed", "hung", "not_sent"]
"""How a call ended.

ok: the response of an idle server. wrong: another response. refused: RESOURCE_EXHAUSTED. expired: DEADLINE_EXCEEDED.
given_up: the same, with a deliberately short deadline. failed: any other code. hung: not ended a second after its
deadline. not_sent: too many calls were in flight.
"""
CALL_RESULTS: tuple[CallResult, ...] = get_args(CallResult)
BUCKET_S = 0.1
"""Bucket of the timeline."""
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}

Floats = npt.NDArray[np.float64]


class CallRecorder:
    """Collects calls in 34 bytes each, 300 MB for a day of 100 calls/s, so that no histogram rounds them."""

    def __init__(self, warmup_s: float) -> None:
        self._warmup_s = warmup_s
        self._due_s, self._send_delay_s, self._ended_s = array("d"), array("d"), array("d")
        self._results, self._num_photos, self._has_short_deadline = array("b"), array("q"), array("b")
        self._status_counts: Counter[str] = Counter()

    def add(
        self,
        result: CallResult,
        status: str,
        *,
        due_s: float,
        sent_s: float,
        ended_s: float,
        num_photos: int,
        has_short_deadline: bool,
    ) -> None:
        """Record a call; times are seconds since the load began."""
        self._due_s.append(due_s)
        self._send_delay_s.append(sent_s - due_s)
        self._ended_s.append(ended_s)
        self._results.append(CALL_RESULTS.index(result))
        self._num_photos.append(num_photos)
        self._has_short_deadline.append(has_short_deadline)
        if due_s >= self._warmup_s:
            self._status_counts[status] += 1

    def report(self, plan: LoadPlan, *, end_s: float, generator_cpu_s: float) -> "LoadReport":
        return LoadReport(
            plan=plan,
            end_s=end_s,
            generator_cpu_s=generator_cpu_s,
            status_counts=self._status_counts,
            due_s=np.array(self._due_s),
            send_delay_s=np.array(self._send_delay_s),
            ended_s=np.array(self._ended_s),
            results=np.array(self._results),
            num_photos=np.array(self._num_photos),
            has_short_deadline=np.array(self._has_short_deadline, dtype=bool),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadReport:
    """Times are seconds since the load began; arrays have one entry per call, with those of the warm-up."""

    plan: LoadPlan
    end_s: float
    """When sending ended: the plan's end, or an early stop."""
    generator_cpu_s: float
    """Processor time of the generator."""
    status_counts: Mapping[str, int]
    """Measured calls by gRPC code and reason, such as `RESOURCE_EXHAUSTED/TOO_BUSY`; wrong ones by the fields that
    differ."""
    due_s: Floats
    """When each call was due."""
    send_delay_s: Floats
    """How much later it was sent; caused by the generator, and included in the latency."""
    ended_s: Floats
    results: npt.NDArray[np.int8]
    """Indices into `CALL_RESULTS`."""
    num_photos: npt.NDArray[np.int64]
    has_short_deadline: npt.NDArray[np.bool_]
    """Whether its deadline was deliberately short."""

    def count(self, result: CallResult) -> int:
        """Return the number of measured calls with a result."""
        return int(self._select_measured(result).sum())

    def latency_ms(self, result: CallResult = "ok") -> Floats:
        """Return latencies of measured calls with a result, without deliberately short deadlines."""
        chosen = self._select_measured(result) & ~self.has_short_deadline
        latency_ms: Floats = (self.ended_s[chosen] - self.due_s[chosen]) * 1000
        return latency_ms

    @property
    def photos_per_s(self) -> float:
        """Rate of photos with correct responses within the measured time, also for calls sent before it."""
        warmup_s = self.plan.warmup_s
        within = (self.results == CALL_RESULTS.index("ok")) & (self.ended_s >= warmup_s) & (self.ended_s < self.end_s)
        return float(self.num_photos[within].sum()) / max(self.end_s - warmup_s, math.ulp(1.0))

    @functools.cached_property
    def timeline(self) -> dict[CallResult, npt.NDArray[np.int64]]:
        """Number of calls by result in buckets of `BUCKET_S`, from the start of the warm-up."""
        last_s = float(self.ended_s.max(initial=0))
        num_buckets = int(last_s / BUCKET_S) + 1
        buckets = (self.ended_s / BUCKET_S).astype(np.int64)
        return {
            result: np.bincount(buckets[self.results == index], minlength=num_buckets)
            for index, result in enumerate(CALL_RESULTS)
        }

    def metrics(self) -> dict[str, float]:
        """Return all figures by name; percentiles of no calls are left out."""
        counts = {result: float(self.count(result)) for result in CALL_RESULTS}
        num_sent = max(1, len(self.results) - int((self.results == CALL_RESULTS.index("not_sent")).sum()))
        return {
            "photos_per_s": self.photos_per_s,
            **counts,
            **_percentiles(self.latency_ms("ok"), ""),
            **_percentiles(self.latency_ms("refused"), "refused_"),
            "sent_late_p99_ms": float(np.percentile(self.send_delay_s, 99)) * 1000 if len(self.send_delay_s) else 0.0,
            "generator_cpu_ms_per_call": self.generator_cpu_s * 1000 / num_sent,
        }

    def table(self) -> str:
        """Return a table for people."""
        metrics = self.metrics()
        lines = [str(self.plan), f"{'result':<10}{'calls':>9}" + "".join(f"{name:>10}" for name in _PERCENTILES)]
        for result in CALL_RESULTS:
            found = _percentiles(self.latency_ms(result), "")
            if self.count(result) or result == "ok":
                milliseconds = "".join(f"{value:>7.0f} ms" for value in found.values())
                lines.append(f"{result:<10}{self.count(result):>9}{milliseconds}")
        lines += [f"  {number:>8}  {status}" for status, number in sorted(self.status_counts.items())]
        lines.append(
            f"{self.photos_per_s:.1f} photos/s; generator: {metrics['generator_cpu_ms_per_call']:.2f} ms of "
            f"processor time per call, p99 of its send delay {metrics['sent_late_p99_ms']:.1f} ms"
        )
        return "\n".join(lines)

    def _select_measured(self, result: CallResult) -> npt.NDArray[np.bool_]:
        measured: npt.NDArray[np.bool_] = (self.results == CALL_RESULTS.index(result)) & (
            self.due_s >= self.plan.warmup_s
        )
        return measured


def _percentiles(latency_ms: Floats, prefix: str) -> dict[str, float]:
    if not len(latency_ms):
        return {}
    values = np.percentile(latency_ms, list(_PERCENTILES.values()))
    return {f"{prefix}{name}_ms": float(value) for name, value in zip(_PERCENTILES, values, strict=True)}
