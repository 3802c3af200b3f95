"""Slots go to the caller that has used least, and leave room for the next one."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from serving.inference.fair_slots import ACTIVE_S, FairSlots
from tests.support.clock import ManualClock


def create_slots(limit, *, caller_limit=None, clock=None):
    slots = FairSlots(limit, clock=clock or ManualClock())
    slots.caller_limit = caller_limit or limit
    return slots


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def start(slots, caller, num_slots=1):
    return asyncio.ensure_future(slots.acquire(caller, num_slots))


def run(test):
    asyncio.run(test())


def test_one_caller_gets_all_slots_in_the_order_of_its_requests():
    async def test():
        slots = create_slots(2, caller_limit=1)
        calls = [start(slots, "a") for _ in range(4)]
        await settle()
        assert [call.done() for call in calls] == [True, True, False, False]
        slots.release("a", 1, seconds=1)
        await settle()
        assert [call.done() for call in calls] == [True, True, True, False]

    run(test)


def test_a_caller_with_cheap_photos_does_not_wait_for_one_with_expensive_ones():
    async def test():
        slots = create_slots(1)
        expensive = [start(slots, "heavy") for _ in range(5)]
        await settle()
        cheap = [start(slots, "light") for _ in range(3)]
        await settle()
        slots.release("heavy", 1, seconds=5)
        for served in range(3):
            await settle()
            assert [call.done() for call in cheap].count(True) == served + 1
            assert [call.done() for call in expensive].count(True) == 1
            slots.release("light", 1, seconds=0.1)

    run(test)


def test_a_caller_leaves_room_while_others_are_active():
    async def test():
        clock = ManualClock()
        slots = create_slots(4, caller_limit=3, clock=clock)
        await slots.acquire("light", 1)
        slots.release("light", 1, seconds=0.1)
        heavy = [start(slots, "heavy") for _ in range(5)]
        await settle()
        assert [call.done() for call in heavy].count(True) == 3
        await asyncio.wait_for(slots.acquire("light", 1), 1)
        slots.release("light", 1, seconds=0.1)
        clock.advance(ACTIVE_S + 1)  # nobody else is active any more
        start(slots, "heavy")
        await settle()
        assert [call.done() for call in heavy].count(True) == 4

    run(test)


def test_a_request_larger_than_the_limit_starts_alone():
    async def test():
        slots = create_slots(2)
        await slots.acquire("a", 1)
        large = start(slots, "a", 5)
        await settle()
        assert not large.done()
        slots.release("a", 1, seconds=0.1)
        await asyncio.wait_for(large, 1)

    run(test)


def test_idle_time_earns_nothing():
    async def test():
        slots = create_slots(1)
        await slots.acquire("old", 1)
        slots.release("old", 1, seconds=100)
        waiting = start(slots, "old")
        await settle()
        newcomer, again = start(slots, "new"), start(slots, "old")
        slots.release("old", 1, seconds=1)
        await settle()
        assert newcomer.done()
        assert waiting.done()
        slots.release("new", 1, seconds=2)  # more than the other one since it came
        await settle()
        assert again.done()

    run(test)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans()), max_size=30))
def test_whatever_is_cancelled_no_slot_is_lost(requests):
    async def test():
        slots = create_slots(3, caller_limit=2)
        calls = []
        for caller, num_slots, is_cancelled in requests:
            call = start(slots, caller, num_slots)
            calls.append((call, caller, num_slots))
            await asyncio.sleep(0)
            if is_cancelled:
                call.cancel()
        while open_calls := [one for one in calls if not one[0].cancelled()]:
            await settle()
            done = [one for one in open_calls if one[0].done() and not one[0].cancelled()]
            assert done, "nobody is served"
            for one in done:
                calls.remove(one)
                slots.release(one[1], one[2], seconds=0.1)
            calls = [one for one in calls if not one[0].cancelled()]
        await asyncio.wait_for(slots.acquire("z", 3), 1)

    run(test)
