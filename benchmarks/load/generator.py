"""Sends a plan's calls and notes what became of each."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence

from benchmarks.load.connections import CallEnded, Connect, Connection, connect_grpc
from benchmarks.load.listings import Answer, Listing, make_listings
from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import Ending, LoadReport, Recorder

__all__ = ["learn_answers", "run_load"]

HUNG_AFTER_S = 1.0
"""Beyond its deadline; gRPC ends a call at its deadline, whatever the server does."""
LEARNING_DEADLINE_S = 60.0
_STOP_LOOKS_S = 0.1
"""Between two looks, while waiting, whether the load was told to stop."""


async def learn_answers(
    address: str,
    photos: Sequence[bytes],
    *,
    num_photos_per_listing: int = 1,
    hostile: Sequence[bytes] = (),
    connect: Connect = connect_grpc,
) -> list[Answer]:
    """What a server that does nothing else answers to each listing, one call after another; give it to `run_load`.

    Raises:
        CallEnded: a listing is not answered.
        OSError: nobody listens.
        ValueError: an answer is none to its listing, or takes a hostile photo for a good one.
    """
    clean, mixed = make_listings(photos, num_photos_per_listing=num_photos_per_listing, hostile=hostile)
    connection = await connect(address)
    try:
        return [
            Answer.to(listing, await connection.call(listing.request, LEARNING_DEADLINE_S))
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
    answers: Sequence[Answer] | None = None,
    connect: Connect = connect_grpc,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """What became of the plan's calls, all of them ended.

    Args:
        hostile: photos that must each be answered with an error, for the plan's `hostile_share`.
        answers: of `learn_answers` for the same photos; None learns them first.
        stop: ends the sending early.

    Raises:
        OSError: nobody listens when the connections are opened.
    """
    if plan.hostile_share and not hostile:
        raise ValueError(f"hostile_share is {plan.hostile_share} and there are no hostile photos; give some")
    if answers is None:
        answers = await learn_answers(
            address,
            photos,
            num_photos_per_listing=plan.num_photos_per_listing,
            hostile=hostile,
            connect=connect,
        )
    clean, mixed = make_listings(photos, num_photos_per_listing=plan.num_photos_per_listing, hostile=hostile)
    if len(answers) != len(clean) + len(mixed):
        raise ValueError(f"{len(answers)} answers for {len(clean) + len(mixed)} listings; learn them of these photos")
    generator = _Generator(
        plan,
        list(zip(clean, answers[: len(clean)], strict=True)),
        list(zip(mixed, answers[len(clean) :], strict=True)),
    )
    return await generator.run(address, connect, stop or asyncio.Event())


_Case = tuple[Listing, Answer]


class _Generator:
    def __init__(self, plan: LoadPlan, clean: list[_Case], mixed: list[_Case]) -> None:
        self._plan = plan
        self._clean, self._mixed = itertools.cycle(clean), itertools.cycle(mixed)
        self._random = random.Random(plan.seed)
        self._recorder = Recorder(plan.warmup_s)
        self._connections: list[Connection] = []
        self._num_in_flight = 0
        self._began_s = 0.0
        self._end_s = math.inf

    async def run(self, address: str, connect: Connect, stop: asyncio.Event) -> LoadReport:
        cpu_s = time.process_time()
        self._began_s = time.monotonic()
        self._end_s = self._plan.warmup_s + self._plan.seconds
        stopper = asyncio.create_task(self._stop(stop))
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._send(tasks, address, connect)
        except ExceptionGroup as group:
            raise group.exceptions[0] from group  # nobody listens; what a call can meet is counted, not raised
        finally:
            stopper.cancel()
            await asyncio.gather(*(connection.close() for connection in self._connections))
        end_s = min(self._end_s, self._now_s())
        return self._recorder.report(self._plan, end_s=end_s, generator_cpu_s=time.process_time() - cpu_s)

    async def _stop(self, stop: asyncio.Event) -> None:
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
                    tasks.create_task(self._caller(self._connections[-1]))
            elif number == 0:
                tasks.create_task(self._dispatcher(tasks))

    async def _caller(self, connection: Connection) -> None:
        while self._now_s() < self._end_s:
            if not await self._call(connection, self._now_s()):
                await self._wait_until(self._now_s() + self._plan.backoff_s)

    async def _dispatcher(self, tasks: asyncio.TaskGroup) -> None:
        for number, due_s in enumerate(self._arrivals_s()):
            await asyncio.sleep(0)  # answers come in even while the generator is behind
            if due_s >= self._end_s or not await self._wait_until(due_s):
                return
            if self._num_in_flight >= self._plan.max_in_flight:
                self._recorder.add(
                    "not_sent", "NOT_SENT", due_s=due_s, sent_s=due_s, ended_s=due_s, num_photos=0, cut_off=False
                )
                continue
            self._num_in_flight += 1
            call = tasks.create_task(self._call(self._connections[number % len(self._connections)], due_s))
            call.add_done_callback(self._forget)

    def _forget(self, call: asyncio.Task[bool]) -> None:
        self._num_in_flight -= 1

    def _arrivals_s(self) -> Iterator[float]:
        assert self._plan.rate_per_s
        due_s = self._now_s()
        while True:
            due_s += self._random.expovariate(self._plan.rate_per_s)
            yield due_s

    async def _call(self, connection: Connection, due_s: float) -> bool:
        """Whether the call was answered."""
        listing, answer = self._case()
        cut_off = self._random.random() < self._plan.short_deadline_share
        deadline_s = self._random.uniform(*self._plan.short_deadline_s) if cut_off else self._plan.deadline_s
        sent_s = self._now_s()
        # A caller's patience begins when it wanted to send; gRPC takes no deadline of 0.
        left_s = max(due_s + deadline_s - sent_s, 0.001)
        became = await _exchange(connection, listing.request, left_s)
        ended_s = self._now_s()
        ending, outcome = _judge(became, answer, cut_off)
        self._recorder.add(
            ending,
            outcome,
            due_s=due_s,
            sent_s=sent_s,
            ended_s=ended_s,
            num_photos=listing.num_photos,
            cut_off=cut_off,
        )
        return ending in ("ok", "wrong")

    def _case(self) -> _Case:
        return next(self._mixed if self._random.random() < self._plan.hostile_share else self._clean)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _wait_until(self, time_s: float) -> bool:
        """Whether there is still something to send then."""
        while (left_s := time_s - self._now_s()) > 0 and self._now_s() < self._end_s:
            await asyncio.sleep(min(left_s, _STOP_LOOKS_S))
        return self._now_s() < self._end_s


async def _exchange(connection: Connection, request: bytes, timeout_s: float) -> bytes | CallEnded | TimeoutError:
    try:
        async with asyncio.timeout(timeout_s + HUNG_AFTER_S):
            return await connection.call(request, timeout_s)
    except (CallEnded, TimeoutError) as ended:
        return ended


def _judge(became: bytes | CallEnded | TimeoutError, answer: Answer, cut_off: bool) -> tuple[Ending, str]:
    """How the call ended, and more exactly for people."""
    if isinstance(became, TimeoutError):
        return "hung", "HUNG"
    if isinstance(became, bytes):
        difference = answer.difference(became)
        return ("wrong", f"WRONG/{difference}") if difference else ("ok", "OK")
    if became.code == "RESOURCE_EXHAUSTED":
        return "refused", str(became)
    if became.code == "DEADLINE_EXCEEDED":
        return ("given_up" if cut_off else "expired"), str(became)
    return "failed", str(became)
