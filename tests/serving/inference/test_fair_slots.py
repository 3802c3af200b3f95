"""Slots go to the caller that has used least, and leave room for the next one."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from serving.inference.fair_slots import ACTIVE_S, FairSlots, SlotRequest
from tests.support.clock import ManualClock


class Model:
    """Starts requests when the slots say so, and notes which share a slot."""

    def __init__(self, limit, *, caller_limit=None, clock=None):
        self.running = []
        self.slots = FairSlots(limit, self.running.append, clock=clock or ManualClock())
        if caller_limit:
            self.slots.caller_limit = caller_limit

    def submit(self, caller, num_photos=1, share_key="small"):
        request = SlotRequest(caller=caller, num_photos=num_photos, share_key=share_key)
        self.slots.submit(request)
        return request

    def finish(self, *, seconds=0.1):
        """End what has run longest."""
        requests = self.running.pop(0)
        self.slots.release(requests, seconds=seconds)
        return requests


def count_started(requests):
    return sum(request.started.done() for request in requests)


def run(test):
    async def main():
        test()

    asyncio.run(main())


def test_one_caller_gets_all_slots_in_the_order_of_its_requests():
    def test():
        model = Model(2, caller_limit=1)
        first, second, third, fourth = (model.submit("a", share_key=None) for _ in range(4))
        assert model.running == [[first], [second]]
        model.finish()
        assert model.running == [[second], [third]]
        assert not fourth.started.done()

    run(test)


def test_small_requests_that_wait_anyway_share_a_slot():
    def test():
        model = Model(2)
        requests = [model.submit("a") for _ in range(9)]
        assert model.running == [[requests[0]], [requests[1]]]
        model.finish()
        assert model.running[-1] == requests[2:6]
        model.finish()
        assert model.running[-1] == requests[6:]

    run(test)


def test_what_waits_is_spread_over_the_free_slots():
    def test():
        model = Model(3)
        large = model.submit("a", 4)
        model.slots.limit = 1
        waiting = [model.submit("a") for _ in range(4)]
        model.slots.limit = 3
        assert model.finish() == [large]
        assert model.running == [waiting[:2], waiting[2:3], waiting[3:]]

    run(test)


def test_only_small_requests_of_one_kind_and_caller_share_a_slot():
    def test():
        model = Model(1, caller_limit=4)
        model.submit("a")
        requests = [
            model.submit("a", share_key="embedding"),
            model.submit("a"),
            model.submit("a", 3),
            model.submit("a", 2),
            model.submit("a", share_key=None),
            model.submit("a", share_key=None),
        ]
        other = model.submit("b")
        groups = []
        while model.running:
            groups.append(model.finish())
        groups.remove([other])
        embedding, *rest, alone, also_alone = requests
        assert groups[1:] == [[embedding], rest[:2], rest[2:], [alone], [also_alone]]

    run(test)


def test_a_caller_with_cheap_photos_does_not_wait_for_one_with_expensive_ones():
    def test():
        model = Model(1)
        expensive = [model.submit("heavy", share_key=None) for _ in range(5)]
        cheap = [model.submit("light", share_key=None) for _ in range(3)]
        model.finish(seconds=5)
        for served in range(3):
            assert count_started(cheap) == served + 1
            assert count_started(expensive) == 1
            model.finish(seconds=0.1)

    run(test)


def test_a_caller_leaves_room_while_others_are_active():
    def test():
        clock = ManualClock()
        model = Model(4, caller_limit=3, clock=clock)
        model.submit("light")
        model.finish()
        heavy = [model.submit("heavy") for _ in range(5)]
        assert count_started(heavy) == 3
        light = model.submit("light")
        assert model.running.pop() == [light]
        model.slots.release([light], seconds=0.1)
        clock.advance(ACTIVE_S + 1)  # nobody else is active any more
        heavy.append(model.submit("heavy"))
        assert count_started(heavy) == 6

    run(test)


def test_a_shared_slot_stays_within_its_callers_share():
    def test():
        model = Model(1, caller_limit=2)
        model.submit("light")
        heavy = [model.submit("heavy") for _ in range(4)]
        model.finish()
        assert model.running == [heavy[:2]]

    run(test)


def test_a_request_larger_than_its_callers_share_starts_alone():
    def test():
        model = Model(4, caller_limit=2)
        model.submit("light")
        model.submit("heavy")
        large = model.submit("heavy", 5)
        assert not large.started.done()
        model.finish()
        model.finish()
        assert model.running == [[large]]

    run(test)


def test_idle_time_earns_nothing():
    def test():
        model = Model(1)
        model.submit("old", share_key=None)
        model.finish(seconds=100)
        waiting = model.submit("old", share_key=None)
        newcomer, again = model.submit("new"), model.submit("old", share_key=None)
        model.finish(seconds=1)
        assert newcomer.started.done()
        assert model.running == [[newcomer]]
        assert waiting.started.done()
        model.finish(seconds=2)  # more than the other one since it came
        assert again.started.done()

    run(test)


def test_a_request_that_is_given_up_is_not_started():
    def test():
        model = Model(1)
        model.submit("a")
        waiting = [model.submit("a") for _ in range(4)]
        waiting[0].started.cancel()  # its caller has been cancelled, and runs later
        model.slots.withdraw(waiting[2])
        model.finish()
        assert model.running == [[waiting[1], waiting[3]]]
        model.slots.withdraw(waiting[0])
        model.slots.withdraw(waiting[1])
        model.finish()
        model.submit("a")
        assert len(model.running) == 1

    run(test)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.sampled_from([None, "small"]), st.booleans())))
def test_whatever_is_given_up_every_other_request_is_started_once_and_no_slot_is_lost(requests):
    def test():
        model = Model(3, caller_limit=2)
        kept, started = [], []
        for caller, num_photos, share_key, is_given_up in requests:
            request = model.submit(caller, num_photos, share_key)
            if is_given_up and not request.started.done():
                request.started.cancel()
                model.slots.withdraw(request)
            else:
                kept.append(request)
            assert len(model.running) <= 3
        while model.running:
            started += model.finish()
        assert sorted(map(id, started)) == sorted(map(id, kept))
        for caller in "xyz":
            model.submit(caller)
        assert len(model.running) == 3

    run(test)


def test_who_takes_much_longer_than_another_caller_yields():
    def test():
        clock = ManualClock()
        model = Model(1, clock=clock)
        for caller, num_photos, seconds in (("slow", 4, 0.8), ("quick", 1, 0.05), ("quicker", 1, 0.04)):
            assert not model.submit(caller, num_photos).yields  # it is not known yet how long the photos take
            model.finish(seconds=seconds)
        assert model.submit("slow").yields
        model.finish()
        assert not model.submit("quick").yields
        model.finish()
        clock.advance(2 * ACTIVE_S)
        assert not model.submit("slow").yields  # the others are gone

    run(test)
