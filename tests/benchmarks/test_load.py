"""The load generator against a small server that answers, refuses, answers wrongly, stalls and hangs when told to."""

import asyncio
import functools
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from benchmarks.load import (
    CallError,
    LoadPlan,
    connect_grpc,
    connections,
    generator,
    record_expected_responses,
    run_load,
)
from benchmarks.load.processes import CpuMeter, list_process_tree, measure_resident_mb, measure_resident_mb_by_name
from benchmarks.load.raw_connection import RawConnection, frame_message
from benchmarks.load.report import BUCKET_S
from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from listing_vision_client.protocol import reasons_pb2
from serving.api.status import Refusal, abort
from tests.support.gateway import PHOTO, run_gateway

PHOTOS = [b"boots", b"mugs", b"bags"]
HOSTILE = b"hostile"


class _Server(pb_grpc.ListingVisionServiceServicer):
    """Answers each photo with the category that its bytes name, unless `misbehave` does something else first."""

    def __init__(self) -> None:
        self.address = ""
        self.peers: Counter[str] = Counter()
        self.num_calls = 0
        self.num_in_flight = self.max_in_flight_seen = 0
        self.misbehave: Callable[[int, pb.ClassifyListingResponse, object], Awaitable[None]] | None = None

    async def ClassifyListing(self, request, context):
        self.peers[context.peer()] += 1
        self.num_in_flight += 1
        self.max_in_flight_seen = max(self.max_in_flight_seen, self.num_in_flight)
        try:
            answer = _answer([photo.content for photo in request.photos])
            if self.misbehave:
                self.num_calls += 1
                await self.misbehave(self.num_calls - 1, answer, context)
            return answer
        finally:
            self.num_in_flight -= 1


def _answer(photos):
    good = [photo for photo in photos if photo != HOSTILE]
    return pb.ClassifyListingResponse(
        category_path=[
            pb.CategorySuggestion(category_id="all", action=pb.ACTION_PREFILL),
            pb.CategorySuggestion(category_id=good[0].decode(), action=pb.ACTION_PREFILL, probability=0.9),
        ],
        brand=pb.BrandSuggestion(kind=pb.BRAND_KIND_BRAND, brand_id="stella"),
        photos=[
            pb.PhotoResult(error=pb.PhotoError(reason=reasons_pb2.PHOTO_NOT_AN_IMAGE))
            if photo == HOSTILE
            else pb.PhotoResult(recognition=pb.PhotoRecognition(category_id=photo.decode()))
            for photo in photos
        ],
    )


@asynccontextmanager
async def _serve():
    servicer, server = _Server(), grpc.aio.server()
    pb_grpc.add_ListingVisionServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(None)


def _run_load(plan, *, misbehave=None, hostile=(), stop_after_s=None):
    """The report, and the server that was loaded; it misbehaves once its answers are learned."""

    async def go():
        async with _serve() as server:
            expected = await record_expected_responses(
                server.address, PHOTOS, num_photos_per_listing=plan.num_photos_per_listing, hostile=hostile
            )
            server.peers.clear()
            server.misbehave = misbehave
            stop = asyncio.Event()
            if stop_after_s is not None:
                asyncio.get_running_loop().call_later(stop_after_s, stop.set)
            report = await run_load(server.address, plan, PHOTOS, hostile=hostile, expected=expected, stop=stop)
            return report, server

    return asyncio.run(go())


def _plan(**fields):
    return LoadPlan(**{"seconds": 0.5, "warmup_s": 0.0, **fields})


def test_a_closed_loop_has_as_many_calls_in_flight_as_callers_over_as_many_connections_as_asked_for():
    report, server = _run_load(_plan(num_callers=6, num_connections=3))
    assert server.max_in_flight_seen <= 6
    assert len(server.peers) == 3
    assert report.status_counts == {"OK": report.count("ok")}
    assert report.count("ok") == server.peers.total() > 6
    assert report.photos_per_s == pytest.approx(report.count("ok") / 0.5, rel=0.2)


def test_photos_are_counted_not_listings():
    report, _ = _run_load(_plan(num_callers=2, num_photos_per_listing=2))
    one_each = int((report.ended_s < report.end_s).sum()) / report.end_s
    assert report.photos_per_s == pytest.approx(2 * one_each)


async def _misbehave_in_turn(number, answer, context):
    what = number % 6
    if what == 1:
        await abort(context, Refusal(reason="TOO_BUSY", message="later", retry_after_s=0.5))
    elif what == 2:
        await abort(context, Refusal(reason="INTERNAL", message="our fault"))
    elif what == 3:
        answer.category_path[-1].category_id = "socks"
    elif what == 4:
        answer.brand.brand_id = "trika"
    elif what == 5:
        answer.category_path[-1].probability = 0.89  # of another batch: the same answer


@pytest.mark.parametrize("token", [None, "victim"])
def test_calls_have_the_token_that_is_given(token):
    found = []

    async def note_token(number, answer, context):
        found.append(dict(context.invocation_metadata()).get("authorization"))

    async def go():
        async with _serve() as server:
            server.misbehave = note_token
            await record_expected_responses(
                server.address, PHOTOS, connect=functools.partial(connect_grpc, token=token)
            )

    asyncio.run(go())
    assert found == [token and f"Bearer {token}"] * len(PHOTOS)


def test_each_way_to_end_is_counted_by_code_and_reason():
    report, server = _run_load(_plan(num_callers=1, backoff_s=0.0), misbehave=_misbehave_in_turn)
    full, rest = divmod(server.num_calls, 6)
    assert full > 0

    def expected(*kinds):
        return sum(full + (kind < rest) for kind in kinds)

    assert report.status_counts == {
        "OK": expected(0, 5),
        "RESOURCE_EXHAUSTED/TOO_BUSY": expected(1),
        "INTERNAL/INTERNAL": expected(2),
        "WRONG/category_id": expected(3),
        "WRONG/brand": expected(4),
    }
    assert report.count("ok") == len(report.latency_ms("ok")) == expected(0, 5)
    assert report.count("refused") == len(report.latency_ms("refused")) == expected(1)
    assert report.count("failed") == expected(2)
    assert report.count("wrong") == expected(3, 4)


def test_the_timeline_holds_every_call_in_the_bucket_of_its_end():
    report, _ = _run_load(_plan(num_callers=2), misbehave=_misbehave_in_turn)
    for result, counts in report.timeline.items():
        assert counts.sum() == report.count(result)
    whole = sum(report.timeline.values())
    early = int((report.ended_s < 2 * BUCKET_S).sum())
    assert whole[:2].sum() == early
    assert len(whole) == int(report.ended_s.max() / BUCKET_S) + 1


def test_warm_up_is_left_out_of_everything_but_the_timeline():
    report, server = _run_load(_plan(num_callers=2, warmup_s=0.3, seconds=0.3))
    measured = int((report.due_s >= 0.3).sum())
    assert 0 < measured < len(report.due_s) == server.peers.total()
    assert report.status_counts == {"OK": measured}
    assert report.timeline["ok"].sum() == len(report.due_s)


async def _hang(number, answer, context):
    await asyncio.sleep(60)


def test_a_call_without_answer_expires_at_its_deadline():
    report, _ = _run_load(_plan(num_callers=2, deadline_s=0.2), misbehave=_hang)
    assert report.count("expired") == len(report.due_s) > 0
    assert report.latency_ms("expired").min() >= 199
    assert report.status_counts == {"DEADLINE_EXCEEDED": report.count("expired")}


def test_a_call_that_outlives_its_deadline_is_hung(monkeypatch):
    # gRPC ends every call at its deadline; a connection that does not is what this counts.
    class Stuck:
        async def call(self, request, timeout_s):
            return await asyncio.Event().wait()

        async def close(self):
            pass

    async def stuck(address):
        return Stuck()

    async def go():
        async with _serve() as server:
            expected = await record_expected_responses(server.address, PHOTOS)
        return await run_load("", _plan(num_callers=2, deadline_s=0.1), PHOTOS, expected=expected, connect=stuck)

    monkeypatch.setattr(generator, "HUNG_TIMEOUT_S", 0.2)
    report = asyncio.run(go())
    assert report.status_counts == {"HUNG": len(report.due_s)}
    assert report.count("hung") > 0
    assert report.latency_ms("hung").min() >= 299


STALL_TIME_S = 0.6
LATE_MS = 200.0


def _create_stall():
    """A server that serves nobody for a while, once."""
    until_s = math.inf

    async def stall(number, answer, context):
        nonlocal until_s
        if number == 20:
            until_s = time.monotonic() + STALL_TIME_S
        while number >= 20 and time.monotonic() < until_s:
            await asyncio.sleep(0.01)

    return stall


def test_an_open_loop_counts_from_when_a_call_should_have_been_sent():
    num_late = {}
    for name, how in {"closed": {"num_callers": 1}, "open": {"rate_per_s": 100.0}}.items():
        report, _ = _run_load(_plan(seconds=1.5, **how), misbehave=_create_stall())
        assert report.count("ok") == len(report.due_s)
        num_late[name] = int((report.latency_ms() > LATE_MS).sum())
    # The lone caller meets the stall once. At 100 calls a second 40 should have been sent in its first 0.4 s.
    assert num_late["closed"] <= 3
    assert num_late["open"] > 20


def test_latency_includes_what_the_generator_itself_is_late():
    async def block(number, answer, context):
        if number == 20:
            time.sleep(STALL_TIME_S)  # server and generator share this loop: neither can send now

    report, _ = _run_load(_plan(seconds=1.5, rate_per_s=100.0), misbehave=block)
    late_ms = report.send_delay_s * 1000
    assert (late_ms > LATE_MS).sum() > 20
    assert (report.latency_ms() > LATE_MS).sum() >= (late_ms > LATE_MS).sum()
    assert report.metrics()["sent_late_p99_ms"] > LATE_MS


def test_an_open_loop_keeps_its_rate():
    report, _ = _run_load(_plan(seconds=1.0, rate_per_s=200.0))
    assert len(report.due_s) == pytest.approx(200, abs=60)  # Poisson: four standard deviations
    gaps_s = np.diff(report.due_s[np.argsort(report.due_s)])
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.3)


def test_beyond_its_bound_an_open_loop_sends_nothing():
    report, server = _run_load(_plan(rate_per_s=100.0, max_in_flight=3, deadline_s=1.0), misbehave=_hang)
    assert server.max_in_flight_seen == 3
    assert report.count("expired") == 3
    assert report.count("not_sent") == len(report.due_s) - 3 > 10
    assert report.status_counts == {"DEADLINE_EXCEEDED": 3, "NOT_SENT": len(report.due_s) - 3}


def test_a_hostile_photo_must_be_answered_with_an_error():
    async def accept(number, answer, context):
        for photo in answer.photos:
            if photo.HasField("error"):
                photo.recognition.category_id = "boots"

    plan = _plan(num_callers=2, hostile_share=0.5)
    report, _ = _run_load(plan, hostile=[HOSTILE])
    assert report.status_counts == {"OK": len(report.due_s)}
    report, _ = _run_load(plan, hostile=[HOSTILE], misbehave=accept)
    assert set(report.status_counts) == {"OK", "WRONG/photos"}
    assert report.status_counts["WRONG/photos"] == pytest.approx(len(report.due_s) / 2, rel=0.5)


def test_a_server_that_accepts_a_hostile_photo_gives_no_expected_response():
    with pytest.raises(ValueError, match=r"2 photos are in the response, those at \[\].*hostile ones at \[0\]"):
        _run_load(_plan(num_callers=1, hostile_share=0.5), hostile=[b"a good one"])


def test_deadlines_too_short_on_purpose_are_no_failures_and_leave_latencies_alone():
    async def slowly(number, answer, context):
        await asyncio.sleep(0.1)

    report, _ = _run_load(
        _plan(num_callers=8, short_deadline_share=0.5, short_deadline_s=(0.01, 0.02)), misbehave=slowly
    )
    assert report.count("given_up") == report.has_short_deadline.sum() > 0
    assert report.status_counts == {"OK": report.count("ok"), "DEADLINE_EXCEEDED": report.count("given_up")}
    assert len(report.latency_ms("given_up")) == 0
    assert report.latency_ms("ok").min() >= 99


@pytest.mark.parametrize("how", [{"num_callers": 2}, {"rate_per_s": 50.0}], ids=["closed", "open"])
def test_told_to_stop_it_ends_its_calls_and_reports(how):
    report, server = _run_load(_plan(seconds=math.inf, **how), stop_after_s=0.4)
    assert 0.3 < report.end_s < 5
    assert report.due_s.max() <= report.end_s
    assert report.count("ok") == len(report.due_s) == server.peers.total() > 0
    assert server.num_in_flight == 0


def test_connections_are_opened_one_after_another():
    opened_s = []

    async def noting(address):
        opened_s.append(time.monotonic())
        return await connect_grpc(address)

    async def go():
        async with _serve() as server:
            plan = _plan(num_callers=4, num_connections=3, ramp_s=0.6, seconds=0.8)
            expected = await record_expected_responses(server.address, PHOTOS)
            began_s = time.monotonic()
            return began_s, await run_load(server.address, plan, PHOTOS, expected=expected, connect=noting)

    began_s, report = asyncio.run(go())
    assert len(opened_s) == 3
    assert all(opened - began_s >= 0.19 * number for number, opened in enumerate(opened_s))
    assert report.count("ok") == len(report.due_s)


def test_without_a_server_it_says_so(monkeypatch):
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(ConnectionError, match=r"no server responds at 127\.0\.0\.1:1 within 0\.3 s"):
        asyncio.run(run_load("127.0.0.1:1", _plan(num_callers=1), PHOTOS))


def test_a_server_that_refuses_from_the_beginning_teaches_nothing():
    async def go():
        async with _serve() as server:
            server.misbehave = refuse
            await record_expected_responses(server.address, PHOTOS)

    async def refuse(number, answer, context):
        await abort(context, Refusal(reason="MODEL_UNAVAILABLE", message="not yet"))

    with pytest.raises(CallError) as ended:
        asyncio.run(go())
    assert str(ended.value) == "UNAVAILABLE/MODEL_UNAVAILABLE"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give num_callers for a closed loop or rate_per_s for an open one"),
        ({"num_callers": 1, "rate_per_s": 1.0}, "not both"),
        ({"num_callers": 0}, "num_callers 0 is not above 0"),
        ({"rate_per_s": 0.0}, "rate_per_s 0.0 is not above 0"),
        ({"num_callers": 1, "deadline_s": -1.0}, "deadline_s -1.0 is below 0"),
        ({"num_callers": 1, "hostile_share": 1.5}, r"hostile_share 1.5 is outside 0\.\.1"),
        ({"num_callers": 1, "short_deadline_s": (0.2, 0.1)}, r"short_deadline_s \(0.2, 0.1\) is not a range"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_any_load(fields, said):
    with pytest.raises(ValueError, match=said):
        LoadPlan(seconds=1.0, **fields)


def test_metrics_and_table_agree_with_the_calls():
    report, _ = _run_load(_plan(num_callers=1, backoff_s=0.0), misbehave=_misbehave_in_turn)
    metrics = report.metrics()
    assert metrics["ok"] == report.count("ok")
    assert metrics["p99_ms"] == np.percentile(report.latency_ms(), 99)
    assert metrics["refused_p50_ms"] == np.percentile(report.latency_ms("refused"), 50)
    assert metrics["generator_cpu_ms_per_call"] > 0
    table = report.table()
    assert f"{report.count('refused')}  RESOURCE_EXHAUSTED/TOO_BUSY" in table
    assert f"{report.photos_per_s:.1f} photos/s" in table


def test_the_command_line_loads_a_server_and_names_its_machine(tmp_path):
    for photo in PHOTOS:
        (tmp_path / photo.decode()).write_bytes(photo)

    async def go():
        async with _serve() as server:
            words = f"-m benchmarks.load {server.address} --photos {tmp_path} --open 50 --seconds 0.5 --warmup-s 0"
            process = await asyncio.create_subprocess_exec(
                sys.executable, *words.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            printed, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            return printed.decode()

    printed = asyncio.run(go())
    assert "50 calls/s, open loop" in printed
    assert "  OK" in printed
    assert "'cores'" in printed


def test_processes_are_counted_with_all_that_descend_from_them():
    burn = "import time\nwhile time.process_time() < 60: pass"
    shell = subprocess.Popen(["bash", "-c", f'{sys.executable} -c "{burn}" & wait'])
    try:
        while len(tree := list_process_tree([shell.pid])) < 2:
            time.sleep(0.01)
        meter = CpuMeter([shell.pid])
        while sum(meter.read_ms_by_name().values()) < 50:
            time.sleep(0.01)
        spent = meter.read_ms_by_name()
        assert "bash" in spent
        assert max(spent, key=spent.get).startswith("python -c")
        assert set(measure_resident_mb_by_name([shell.pid])) == set(spent)
        assert measure_resident_mb([shell.pid]) > measure_resident_mb([tree[-1]]) > 1
    finally:
        for pid in tree[1:]:
            subprocess.run(["kill", str(pid)], check=True)
        shell.wait(10)
    assert list_process_tree([shell.pid]) == []


def test_a_raw_connection_makes_calls_of_any_size_one_after_another(bundle):
    """And leaves a refused one, whose message the service does not read."""
    small = pb.ClassifyListingRequest(photos=[{"content": PHOTO}])
    large = pb.ClassifyListingRequest(photos=[{"content": PHOTO + bytes(9 << 20)}] * 3)
    messages = [frame_message(one.SerializeToString()) for one in (small, large, pb.ClassifyListingRequest(), small)]

    def call_all(port):
        connection = RawConnection(port, timeout_s=20)
        answers = [connection.call(message) for message in messages]
        connection.close()
        hurried = RawConnection(port, timeout_s=0.001)
        answers.append(hurried.call(messages[1]))
        hurried.close()
        return answers

    async def run():
        async with run_gateway(bundle) as (gateway_server, _):
            return await asyncio.to_thread(call_all, gateway_server.port)

    assert asyncio.run(run()) == [True, True, False, True, False]
