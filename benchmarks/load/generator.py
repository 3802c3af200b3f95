"""Send the calls of a plan and record how each one ended."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence

from benchmarks.load.connections import CallError, Connect, Connection, connect_grpc
from benchmarks.load.listings import ExpectedResponse, Listing, make_listings
from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import CallRecorder, CallResult, LoadReport

__all__ = ["record_expected_responses", "run_load"]

HUNG_TIMEOUT_S = 1.0
"""Time beyond its deadline after which a call hangs; gRPC itself ends calls at their deadline."""
EXPECTED_RESPONSE_DEADLINE_S = 60.0
_STOP_POLL_INTERVAL_S = 0.1
"""Interval at which waiting callers check whether to stop."""


async def record_expected_responses(
    address: str,
    photos: Sequence[bytes],
    *,
    num_photos_per_listing: int = 1,
    hostile: Sequence[bytes] = (),
    connect: Connect = connect_grpc,
) -> list[ExpectedResponse]:
    """Return an idle server's response to each listing, one call after another; pass them to `run_load`.

    Raises:
        CallError: a call fails.
        OSError: no server listens.
        ValueError: a response does not fit its listing, or accepts a hostile photo.
    """
    clean, mixed = make_listings(photos, num_photos_per_listing=num_photos_per_listing, hostile=hostile)
    connection = await connect(address)
    try:
        return [
            ExpectedResponse.from_response(
                listing, await connection.call(listing.request, EXPECTED_RESPONSE_DEADLINE_S)
            )
            for listing in (*clean, *mixed)
        ]
    finally:
        await connection.close()


async def run_load(
    address: str,
    plan: LoadPlan,
    photos: Sequence[bytes],
    *,
    hostile: Sequence[bytes] = (),
    expected: Sequence[ExpectedResponse] | None = None,
    connect: Connect = connect_grpc,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """Send the plan's calls and return how they ended.

    Args:
        hostile: photos that must be rejected, for the plan's `hostile_share`.
        expected: of `record_expected_responses` for the same photos; None records them first.
        stop: ends the load early.

    Raises:
        OSError: no server listens when the connections are opened.
    """
    if plan.hostile_share and not hostile:
        raise ValueError(f"hostile_share is {plan.hostile_share} and there are no hostile photos; give some")
    if expected is None:
        expected = await record_expected_responses(
            address,
            photos,
            num_photos_per_listing=plan.num_photos_per_listing,
            hostile=hostile,
            connect=connect,
        )
    clean, mixed = make_listings(photos, num_photos_per_listing=plan.num_photos_per_listing, hostile=hostile)
    if len(expected) != len(clean) + len(mixed):
        raise ValueError(
            f"{len(expected)} expected responses for {len(clean) + len(mixed)} listings; use the same photos"
        )
    generator = _Generator(
        plan,
        list(zip(clean, expected[: len(clean)], strict=True)),
        list(zip(mixed, expected[len(clean) :], strict=True)),
    )
    return await generator.run(address, connect, stop or asyncio.Event())


_ExpectedCall = tuple[Listing, ExpectedResponse]


class _Generator:
    def __init__(self, plan: LoadPlan, clean: list[_ExpectedCall], mixed: list[_ExpectedCall]) -> None:
        self._plan = plan
        self._clean, self._mixed = itertools.cycle(clean), itertools.cycle(mixed)
        self._random = random.Random(plan.seed)
        self._recorder = CallRecorder(plan.warmup_s)
        self._connections: list[Connection] = []
        self._num_in_flight = 0
        self._began_s = 0.0
        self._end_s = math.inf

    async def run(self, address: str, connect: Connect, stop: asyncio.Event) -> LoadReport:
        cpu_s = time.process_time()
        self._began_s = time.monotonic()
        self._end_s = self._plan.warmup_s + self._plan.seconds
        stopper = asyncio.create_task(self._end_when_stopped(stop))
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._send(tasks, address, connect)
        except ExceptionGroup as group:
            raise group.exceptions[0] from group  # no server listens; failed calls are counted, not raised
        finally:
            stopper.cancel()
            await asyncio.gather(*(connection.close() for connection in self._connections))
        end_s = min(self._end_s, self._now_s())
        return self._recorder.report(self._plan, end_s=end_s, generator_cpu_s=time.process_time() - cpu_s)

    async def _end_when_stopped(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end_s = min(self._end_s, self._now_s())

    async def _send(self, tasks: asyncio.TaskGroup, address: str, connect: Connect) -> None:
        plan = self._plan
        num_connections = min(plan.num_connections, plan.num_callers or plan.num_connections)
        for number in range(num_connections):
            if not await self._wait_until(plan.ramp_s * number / num_connections):
                return
            self._connections.append(await connect(address))
            if plan.num_callers:
                for _ in range(number, plan.num_callers, num_connections):
                    tasks.create_task(self._run_caller(self._connections[-1]))
            elif number == 0:
                tasks.create_task(self._run_dispatcher(tasks))

    async def _run_caller(self, connection: Connection) -> None:
        while self._now_s() < self._end_s:
            if not await self._call(connection, self._now_s()):
                await self._wait_until(self._now_s() + self._plan.backoff_s)

    async def _run_dispatcher(self, tasks: asyncio.TaskGroup) -> None:
        for number, due_s in enumerate(self._sample_arrivals_s()):
            await asyncio.sleep(0)  # lets responses arrive while the generator is late
            if due_s >= self._end_s or not await self._wait_until(due_s):
                return
            if self._num_in_flight >= self._plan.max_in_flight:
                self._recorder.add(
                    "not_sent",
                    "NOT_SENT",
                    due_s=due_s,
                    sent_s=due_s,
                    ended_s=due_s,
                    num_photos=0,
                    has_short_deadline=False,
                )
                continue
            self._num_in_flight += 1
            call = tasks.create_task(self._call(self._connections[number % len(self._connections)], due_s))
            call.add_done_callback(self._count_finished)

    def _count_finished(self, call: asyncio.Task[bool]) -> None:
        self._num_in_flight -= 1

    def _sample_arrivals_s(self) -> Iterator[float]:
        assert self._plan.rate_per_s
        due_s = self._now_s()
        while True:
            due_s += self._random.expovariate(self._plan.rate_per_s)
            yield due_s

    async def _call(self, connection: Connection, due_s: float) -> bool:
        """Return whether the call got a response."""
        listing, answer = self._next_call()
        has_short_deadline = self._random.random() < self._plan.short_deadline_share
        deadline_s = self._random.uniform(*self._plan.short_deadline_s) if has_short_deadline else self._plan.deadline_s
        sent_s = self._now_s()
        # The deadline counts from when the call was due; gRPC takes no deadline of 0.
        left_s = max(due_s + deadline_s - sent_s, 0.001)
        reply = await _send_request(connection, listing.request, left_s)
        ended_s = self._now_s()
        result, status = _classify_result(reply, answer, has_short_deadline)
        self._recorder.add(
            result,
            status,
            due_s=due_s,
            sent_s=sent_s,
            ended_s=ended_s,
            num_photos=listing.num_photos,
            has_short_deadline=has_short_deadline,
        )
        return result in ("ok", "wrong")

    def _next_call(self) -> _ExpectedCall:
        return next(self._mixed if self._random.random() < self._plan.hostile_share else self._clean)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _wait_until(self, time_s: float) -> bool:
        """Wait; return whether the load still runs then."""
        while (left_s := time_s - self._now_s()) > 0 and self._now_s() < self._end_s:
            await asyncio.sleep(min(left_s, _STOP_POLL_INTERVAL_S))
        return self._now_s() < self._end_s


async def _send_request(connection: Connection, request: bytes, timeout_s: float) -> bytes | CallError | TimeoutError:
    try:
        async with asyncio.timeout(timeout_s + HUNG_TIMEOUT_S):
            return await connection.call(request, timeout_s)
    except (CallError, TimeoutError) as ended:
        return ended


def _classify_result(
    reply: bytes | CallError | TimeoutError, answer: ExpectedResponse, has_short_deadline: bool
) -> tuple[CallResult, str]:
    """Return how the call ended, as a result and in detail."""
    if isinstance(reply, TimeoutError):
        return "hung", "HUNG"
    if isinstance(reply, bytes):
        difference = answer.find_difference(reply)
        return ("wrong", f"WRONG/{difference}") if difference else ("ok", "OK")
    if reply.code == "RESOURCE_EXHAUSTED":
        return "refused", str(reply)
    if reply.code == "DEADLINE_EXCEEDED":
        return ("given_up" if has_short_deadline else "expired"), str(reply)
    return "failed", str(reply)
