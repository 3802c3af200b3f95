"""Receive messages under a deadline and within a bound of memory, however slowly they come.

gRPC holds a message in memory from its first byte, before any limit of the gateway applies to it; and the iterator that
it gives to handlers refers to itself, and keeps its last message until the garbage collector runs. So messages are read
from the call's context.
"""

import asyncio
import ctypes
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from serving.api.limits import REQUEST_LIMIT_BYTES
from serving.api.status import Refusal
from serving.gateway.admission import MAX_BYTES_IN_FLIGHT
from serving.gateway.connection_meter import ConnectionMeter
from serving.gateway.deadline import deadline_refusal
from serving.observability import metrics

__all__ = ["ReadMessage", "Receiver"]

_log = logging.getLogger(__name__)

ReadMessage: TypeAlias = Callable[[], Awaitable[object]]
"""Returns the next message of a call as bytes, or `grpc.aio.EOF`, as `ServicerContext.read` without a deserialiser."""

CHECK_INTERVAL_S = 0.01
"""Between checks of the memory, while a message takes longer than this to arrive."""
MAX_CHECK_LOAD = 10
"""The least time between checks, as a multiple of what the last one took."""
MAX_INCOMPLETE_SHARE = 0.5
"""Share of the memory that incomplete messages may take."""
MAX_CALLER_SHARE = 0.375
"""Share of the memory that the incomplete messages of one caller may take; one of the largest size fits."""
GROWTH_HORIZON_S = 0.2
"""A message that is arriving counts with what comes in this time at its present rate."""
STALLED_AFTER_S = 0.1
"""An incomplete message of which nothing came for this long may be dropped where another one waits for room."""
RETRY_DELAY_S = 1.0
_HEADROOM = 4
"""A message is expected to be at most this multiple of its caller's usual size until the next check."""
TRIM_INTERVAL_S = 0.1
LARGE_BYTES = 32 << 20
"""What a process frees after a message of this size, and keeps for the next one, is returned once none has come for
`TRIM_IDLE_S`."""
TRIM_IDLE_S = 10.0
LIBC = ctypes.CDLL(None)


@dataclass(eq=False)
class _Reception:
    caller: str
    peer: str
    timeout: asyncio.Timeout
    num_expected_bytes: int = 0
    """What may arrive of it before it is measured again."""
    num_arrived_bytes: int = 0
    """When it was last measured."""
    measured_s: float = 0.0
    """When it began or was last measured."""
    grew_s: float = 0.0
    """When something of it had come, at the last measurement at which something had."""
    is_refused: bool = False


class Receiver:
    """Receives the messages of all calls of one gateway process.

    A message begins to be received when it fits beside the others, of its caller and of all. When incomplete messages
    take more than that after all, the oldest of the caller who has most are refused, until the rest fits; and those
    that are stalled, where others wait for room.
    """

    def __init__(
        self,
        *,
        num_held_bytes: Callable[[], int],
        get_typical_bytes: Callable[[str], float | None],
        max_bytes: int = MAX_BYTES_IN_FLIGHT,
    ) -> None:
        """Args:
        num_held_bytes: bytes of complete messages that are in flight.
        get_typical_bytes: size of a caller's messages so far; None: not known.
        max_bytes: bound of complete and incomplete messages together.
        """
        self._num_held_bytes = num_held_bytes
        self._get_typical_bytes = get_typical_bytes
        self._max_bytes = max_bytes
        self._meter = ConnectionMeter()
        self._receptions: dict[_Reception, None] = {}
        """In the order in which they began."""
        self._waiting: dict[_Reception, None] = {}
        """Those that wait for room."""
        self._expected_bytes: Counter[str] = Counter()
        """What is expected of the receptions of each caller together."""
        self._checked = asyncio.Event()
        self._check_timer: asyncio.TimerHandle | None = None
        self._trim_timer: asyncio.TimerHandle | None = None

    async def receive(
        self,
        read: ReadMessage,
        *,
        caller: str,
        peer: str,
        deadline_s: float | None,
        expect: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> bytes | None:
        """Return the next message as it was sent; None: the caller sends no more.

        Args:
            read: of one call.
            caller: who shares the memory with others.
            peer: the connection, as `ServicerContext.peer` names it.
            deadline_s: seconds until the whole message must be there; None: no limit.
            expect: entered once there is room for the message, left when it is there; raises a Refusal where it would
                be received in vain.

        Raises:
            Refusal: DEADLINE_TOO_SHORT, or TOO_BUSY.
        """
        self._meter.watch(peer)
        try:
            async with asyncio.timeout(deadline_s) as timeout:
                reception = _Reception(caller, peer, timeout)
                found = await self._read(read, reception, expect)
        except TimeoutError:
            if reception.is_refused:
                raise self._create_refusal() from None
            raise deadline_refusal(deadline_s or 0.0) from None
        if found is not None:
            self._meter.count_message(peer, len(found))
            if len(found) >= LARGE_BYTES:
                self._schedule_trim(TRIM_IDLE_S)
        return found

    async def _read(
        self,
        read: ReadMessage,
        reception: _Reception,
        expect: Callable[[], AbstractContextManager[None]],
    ) -> bytes | None:
        await self._wait_for_room(reception)
        self._receptions[reception] = None
        found = None
        try:
            with expect():
                message = await read()
            if message is not grpc.aio.EOF:
                assert isinstance(message, bytes)
                found = message
        finally:
            if found is None:  # what has arrived of a message is dropped with its call
                num_sharing = sum(one.peer == reception.peer for one in self._receptions)
                self._meter.discard(reception.peer, self._meter.measure(reception.peer) / num_sharing)
            del self._receptions[reception]
            self._expected_bytes[reception.caller] -= reception.num_expected_bytes
        return found

    async def _wait_for_room(self, reception: _Reception) -> None:
        """Begin only as much as fits, whatever arrives before the next check: gRPC reads what a call asks for."""
        typical = self._get_typical_bytes(reception.caller)
        num_bytes = REQUEST_LIMIT_BYTES if typical is None else min(REQUEST_LIMIT_BYTES, int(_HEADROOM * typical))
        reception.num_expected_bytes = num_bytes
        self._schedule_check()
        self._waiting[reception] = None
        try:
            while not self._fits(reception):
                await self._checked.wait()
        finally:
            del self._waiting[reception]
        self._expected_bytes[reception.caller] += num_bytes
        reception.measured_s = reception.grew_s = asyncio.get_running_loop().time()

    def _fits(self, reception: _Reception) -> bool:
        """Whether it may begin; a message that is alone, or alone of its caller, fits whatever its size is."""
        num_bytes, of_caller = reception.num_expected_bytes, self._expected_bytes[reception.caller]
        fits_all = self._expected_bytes.total() + num_bytes <= self._limit_bytes
        fits_caller = of_caller + num_bytes <= self._caller_limit_bytes
        return not self._receptions or (fits_all and (fits_caller or not of_caller))

    def _schedule_check(self, delay_s: float = CHECK_INTERVAL_S) -> None:
        if self._check_timer is None:
            self._check_timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        self._check_timer = None
        began_s, now_s = time.perf_counter(), asyncio.get_running_loop().time()
        weights = self._weigh([one for one in self._receptions if now_s - one.measured_s >= CHECK_INTERVAL_S])
        for one, num_bytes in weights.items():
            growth = max(0, num_bytes - one.num_arrived_bytes)
            expected_growth = growth * GROWTH_HORIZON_S / (now_s - one.measured_s)
            one.num_expected_bytes = min(REQUEST_LIMIT_BYTES, num_bytes + int(expected_growth))
            one.num_arrived_bytes, one.measured_s = num_bytes, now_s
            one.grew_s = now_s if growth else one.grew_s
        self._expected_bytes = Counter()
        for one in self._receptions:
            self._expected_bytes[one.caller] += one.num_expected_bytes
        self._checked.set()
        self._checked = asyncio.Event()
        if not self._receptions and not self._waiting:
            return
        for reception in self._find_excess(weights, now_s):
            reception.is_refused = True
            reception.timeout.reschedule(now_s)
            _log.warning("an incomplete message of %r is dropped: they take too much memory", reception.caller)
            metrics.INCOMPLETE_MESSAGES_DROPPED.inc()
            self._schedule_trim(TRIM_INTERVAL_S)
        # With thousands of quiet connections a check takes milliseconds; it must not take a noticeable share of a core.
        self._schedule_check(max(CHECK_INTERVAL_S, MAX_CHECK_LOAD * (time.perf_counter() - began_s)))

    def _schedule_trim(self, delay_s: float) -> None:
        """Return freed memory to the system after a time, unless that is due within `TRIM_INTERVAL_S`: glibc keeps what
        gRPC's threads have freed, and the process what large messages have taken."""
        loop = asyncio.get_running_loop()
        if self._trim_timer is not None:
            if self._trim_timer.when() <= loop.time() + TRIM_INTERVAL_S:
                return
            self._trim_timer.cancel()
        self._trim_timer = loop.call_later(delay_s, self._trim)

    def _trim(self) -> None:
        self._trim_timer = None
        if hasattr(LIBC, "malloc_trim"):
            asyncio.get_running_loop().run_in_executor(None, LIBC.malloc_trim, 0)

    def _weigh(self, receptions: Sequence[_Reception]) -> dict[_Reception, int]:
        """Return the bytes that have arrived for each reception; those of one connection are split evenly."""
        counts = Counter(one.peer for one in receptions)
        weights = {peer: self._meter.measure(peer) // count for peer, count in counts.items()}
        return {one: weights[one.peer] for one in receptions}

    def _find_excess(self, arrived: Mapping[_Reception, int], now_s: float) -> list[_Reception]:
        """Return the receptions to refuse, so that the others fit, and so that whoever waits for room does not wait for
        messages that never end."""
        left = {one: num_bytes for one, num_bytes in arrived.items() if num_bytes and not one.is_refused}
        found: list[_Reception] = []

        def refuse(candidates: Mapping[_Reception, int]) -> None:
            found.append(_choose_victim(candidates))
            del left[found[-1]]

        while left:
            totals = _sum_by_caller(left)
            if totals.total() <= self._limit_bytes and max(totals.values()) <= self._caller_limit_bytes:
                break
            refuse(left)
        waiting = min(self._waiting, key=lambda one: one.num_expected_bytes, default=None)
        while waiting and (stalled := {one: n for one, n in left.items() if now_s - one.grew_s >= STALLED_AFTER_S}):
            totals = _sum_by_caller(left)
            of_caller = {one: n for one, n in stalled.items() if one.caller == waiting.caller}
            if totals.total() + waiting.num_expected_bytes > self._limit_bytes:
                refuse(stalled)
            elif of_caller and totals[waiting.caller] + waiting.num_expected_bytes > self._caller_limit_bytes:
                refuse(of_caller)
            else:
                break
        return found

    @property
    def _limit_bytes(self) -> float:
        """Bound of all incomplete messages together."""
        return max(0, min(MAX_INCOMPLETE_SHARE * self._max_bytes, self._max_bytes - self._num_held_bytes()))

    @property
    def _caller_limit_bytes(self) -> float:
        """Bound of the incomplete messages of one caller."""
        return MAX_CALLER_SHARE * self._max_bytes

    def _create_refusal(self) -> Refusal:
        return Refusal(
            reason="TOO_BUSY",
            message="the message did not arrive, and messages that arrive slowly take too much memory; try later",
            retry_after_s=RETRY_DELAY_S,
        )


def _sum_by_caller(receptions: Mapping[_Reception, int]) -> "Counter[str]":
    totals: Counter[str] = Counter()
    for one, num_bytes in receptions.items():
        totals[one.caller] += num_bytes
    return totals


def _choose_victim(receptions: Mapping[_Reception, int]) -> _Reception:
    """Return, of the caller who has most, the oldest that is not below the mean."""
    ((caller, total),) = _sum_by_caller(receptions).most_common(1)
    of_caller = {one: num_bytes for one, num_bytes in receptions.items() if one.caller == caller}
    return next(one for one, num_bytes in of_caller.items() if num_bytes * len(of_caller) >= total)
