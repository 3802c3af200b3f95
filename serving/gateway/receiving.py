"""Receive messages under a deadline and within a bound of memory, however slowly they come.

gRPC holds a message in memory from its first byte, before any limit of the gateway applies to it.
"""

import asyncio
import ctypes
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from serving.api.limits import REQUEST_LIMIT_BYTES
from serving.api.status import Refusal
from serving.gateway.admission import MAX_BYTES_IN_FLIGHT
from serving.gateway.connection_meter import ConnectionMeter
from serving.gateway.deadline import deadline_refusal
from serving.observability import metrics

__all__ = ["Receiver"]

_log = logging.getLogger(__name__)

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
SUSPICION_S = 30.0
"""For so long after a message of a caller was dropped, its messages are received one at a time, but for those on
connections whose last message was received whole."""
MAX_SUSPECT_S = 0.25
"""Until such a message must be there; less where many wait, so that each has its turn within SUSPECT_ROUND_S."""
SUSPECT_ROUND_S = 2.0
RETRY_DELAY_S = 1.0
_HEADROOM = 4
"""A message is expected to be at most this multiple of its caller's usual size until the next check."""
TRIM_INTERVAL_S = 0.5
_LIBC = ctypes.CDLL(None)


@dataclass(eq=False)
class _Reception:
    caller: str
    peer: str
    timeout: asyncio.Timeout
    num_expected_bytes: float = 0.0
    """What may arrive of it before it is measured again."""
    num_arrived_bytes: float = 0.0
    """When it was last measured."""
    measured_s: float = 0.0
    """When it began or was last measured."""
    is_refused: bool = False
    """Whether its time is limited because memory is short."""


class Receiver:
    """Receives the messages of all calls of one gateway process.

    When incomplete messages take more than their share of the memory, or other messages wait for room, the oldest
    reception of the caller whose incomplete messages take most is refused, until the rest fits.
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
        self._num_expected_bytes = 0.0
        """What is expected of all receptions together."""
        self._waiting_bytes: Counter[float] = Counter()
        """What the messages that wait for room are expected to take, with the number of such messages."""
        self._suspects: dict[str, float] = {}
        """Callers of whom a message was dropped, with the time until which they are suspect."""
        self._suspect_turn = asyncio.Lock()
        self._num_suspect_messages = 0
        self._checked = asyncio.Event()
        self._check_timer: asyncio.TimerHandle | None = None
        self._trim_timer: asyncio.TimerHandle | None = None

    async def receive(
        self, messages: AsyncIterator[bytes], *, caller: str, peer: str, deadline_s: float | None
    ) -> bytes | None:
        """Return the next message as it was sent; None: the caller sends no more.

        Args:
            messages: of one call.
            caller: who shares the memory with others.
            peer: the connection, as `ServicerContext.peer` names it.
            deadline_s: seconds until the whole message must be there; None: no limit.

        Raises:
            Refusal: DEADLINE_TOO_SHORT, or TOO_BUSY.
        """
        self._meter.watch(peer)
        try:
            async with asyncio.timeout(deadline_s) as timeout:
                reception = _Reception(caller, peer, timeout)
                if self._is_suspect(reception):
                    found = await self._read_in_turn(messages, reception)
                else:
                    found = await self._read(messages, reception)
        except TimeoutError:
            if reception.is_refused:
                self._note_dropped(reception)
                raise self._create_refusal() from None
            raise deadline_refusal(deadline_s or 0.0) from None
        if found is not None:
            self._meter.count_message(peer, len(found))
        return found

    async def _read_in_turn(self, messages: AsyncIterator[bytes], reception: _Reception) -> bytes | None:
        self._num_suspect_messages += 1
        try:
            async with self._suspect_turn:
                time_s = min(MAX_SUSPECT_S, SUSPECT_ROUND_S / self._num_suspect_messages)
                until_s = asyncio.get_running_loop().time() + time_s
                if until_s < (reception.timeout.when() or math.inf):
                    reception.timeout.reschedule(until_s)
                    reception.is_refused = True
                return await self._read(messages, reception)
        finally:
            self._num_suspect_messages -= 1

    async def _read(self, messages: AsyncIterator[bytes], reception: _Reception) -> bytes | None:
        await self._wait_for_room(reception)
        self._receptions[reception] = None
        found = None
        try:
            found = await anext(messages, None)
        finally:
            if found is None:  # what has arrived of a message is dropped with its call
                num_sharing = sum(one.peer == reception.peer for one in self._receptions)
                self._meter.discard(reception.peer, self._meter.measure(reception.peer) / num_sharing)
            del self._receptions[reception]
        return found

    async def _wait_for_room(self, reception: _Reception) -> None:
        """Begin only as much as fits, whatever arrives before the next check: gRPC reads what a call asks for."""
        typical = self._get_typical_bytes(reception.caller)
        num_bytes = REQUEST_LIMIT_BYTES if typical is None else min(REQUEST_LIMIT_BYTES, _HEADROOM * typical)
        self._schedule_check()
        self._waiting_bytes[num_bytes] += 1
        try:
            while self._receptions and self._num_expected_bytes + num_bytes > self._limit_bytes:
                await self._checked.wait()
        finally:
            self._waiting_bytes[num_bytes] -= 1
            self._waiting_bytes += Counter()  # keeps what is above 0
        reception.num_expected_bytes = num_bytes
        self._num_expected_bytes += num_bytes
        reception.measured_s = asyncio.get_running_loop().time()

    def _schedule_check(self, delay_s: float = CHECK_INTERVAL_S) -> None:
        if self._check_timer is None:
            self._check_timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        self._check_timer = None
        began_s, now_s = time.perf_counter(), asyncio.get_running_loop().time()
        self._suspects = {caller: until_s for caller, until_s in self._suspects.items() if until_s > now_s}
        weights = self._weigh([one for one in self._receptions if now_s - one.measured_s >= CHECK_INTERVAL_S])
        for one, num_bytes in weights.items():
            growth = max(0.0, num_bytes - one.num_arrived_bytes) * GROWTH_HORIZON_S / (now_s - one.measured_s)
            one.num_expected_bytes = min(REQUEST_LIMIT_BYTES, num_bytes + growth)
            one.num_arrived_bytes, one.measured_s = num_bytes, now_s
        self._num_expected_bytes = sum(one.num_expected_bytes for one in self._receptions)
        self._checked.set()
        self._checked = asyncio.Event()
        if not self._receptions:
            return
        for reception in self._find_excess(weights):
            reception.is_refused = True
            reception.timeout.reschedule(now_s)
        # With thousands of quiet connections a check takes milliseconds; it must not take a noticeable share of a core.
        self._schedule_check(max(CHECK_INTERVAL_S, MAX_CHECK_LOAD * (time.perf_counter() - began_s)))

    def _note_dropped(self, reception: _Reception) -> None:
        _log.warning("an incomplete message of %r is dropped: such messages take too much memory", reception.caller)
        metrics.INCOMPLETE_MESSAGES_DROPPED.inc()
        self._suspects[reception.caller] = asyncio.get_running_loop().time() + SUSPICION_S
        self._meter.distrust(reception.peer)
        self._schedule_trim()

    def _is_suspect(self, reception: _Reception) -> bool:
        return reception.caller in self._suspects and not self._meter.is_trusted(reception.peer)

    def _schedule_trim(self) -> None:
        """Return freed memory to the system soon: glibc keeps what gRPC's threads have freed."""
        if self._trim_timer is None:
            self._trim_timer = asyncio.get_running_loop().call_later(TRIM_INTERVAL_S, self._trim)

    def _trim(self) -> None:
        self._trim_timer = None
        if hasattr(_LIBC, "malloc_trim"):
            asyncio.get_running_loop().run_in_executor(None, _LIBC.malloc_trim, 0)

    def _weigh(self, receptions: Sequence[_Reception]) -> dict[_Reception, float]:
        """Return the bytes that have arrived for each reception; those of one connection are split evenly."""
        counts = Counter(one.peer for one in receptions)
        weights = {peer: self._meter.measure(peer) / count for peer, count in counts.items()}
        return {one: weights[one.peer] for one in receptions}

    def _find_excess(self, arrived: Mapping[_Reception, float]) -> list[_Reception]:
        """Return the receptions to refuse, so that the others fit: of a caller the oldest, but none below the mean."""
        by_caller: dict[str, dict[_Reception, float]] = defaultdict(dict)
        for one, weight in arrived.items():
            if weight and not one.is_refused:
                by_caller[one.caller][one] = weight
        totals = {caller: sum(weights.values()) for caller, weights in by_caller.items()}
        excess = []
        # Whoever waits for room must not wait for messages that never end.
        limit = self._limit_bytes - min(self._waiting_bytes, default=0.0)
        while totals:
            caller = max(totals, key=totals.__getitem__)
            if sum(totals.values()) <= limit and totals[caller] <= MAX_CALLER_SHARE * self._max_bytes:
                break
            weights = by_caller[caller]
            mean = min(totals[caller] / len(weights), max(weights.values()))  # whatever the rounding
            oldest = next(one for one, weight in weights.items() if weight >= mean)
            totals[caller] -= weights.pop(oldest)
            excess.append(oldest)
            if not weights:
                del totals[caller]
        return excess

    @property
    def _limit_bytes(self) -> float:
        """Bound of all incomplete messages together."""
        return max(0, min(MAX_INCOMPLETE_SHARE * self._max_bytes, self._max_bytes - self._num_held_bytes()))

    def _create_refusal(self) -> Refusal:
        return Refusal(
            reason="TOO_BUSY",
            message="the message did not arrive, and messages that arrive slowly take too much memory; try later",
            retry_after_s=RETRY_DELAY_S,
        )
