"""A job keeps the trace of its submission, whoever publishes it again, and its worker's log names it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aiormq.abc
import redis.asyncio as aioredis
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    StartWorker,
    StartWorkerProcess,
    chat,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.test_lost_messages import SWEEP_S

from inferfleet.producer import Fleet, SyncFleet
from inferfleet.schemas import Job
from inferfleet.schemas.dead_letter import DeadLetter
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.message import trace_of
from inferfleet.schemas.names import job_queue, request_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.ports import Completion, Generation

ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{ID}-b7ad6b7169203331-01"
TRACE: dict[str, Any] = {"traceparent": PARENT, "tracestate": "vendor=x"}
RETRIED: dict[str, Any] = {"simulated": {"fail": "engine_error", "fail_times": 1}}


class WatchedEngine(SimulatedEngine):
    """Notes the trace of each request that it gets."""

    def __init__(self) -> None:
        super().__init__(model="simulated", max_running=4, engine_args={"speed": 0})
        self.traces: list[tuple[str, dict[str, str]]] = []

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        self.traces.append((generation.id, dict(generation.trace_headers)))
        async for event in super().generate(generation):
            yield event


async def test_a_retry_a_hand_over_and_a_turn_that_waited_have_the_trace_of_their_submission(
    fleet: Fleet, start_worker: StartWorker, pool: str
) -> None:
    engines = WatchedEngine(), WatchedEngine()
    first = await start_worker(engines[0])
    retried = await fleet.submit(chat(**RETRIED), pool=pool, **TRACE)
    await fleet.wait(retried, timeout_s=PATIENCE_S)
    session = fleet.session(f"s-{pool}")
    untraced = await session.send(**slow_turn(), pool=pool)
    await until_running(fleet, untraced)
    turn = await session.send("behind it", pool=pool, **TRACE)
    await first.stop()
    await start_worker(engines[1])
    await fleet.wait_many([untraced, turn], timeout_s=PATIENCE_S)
    assert engines[0].traces == [(retried.id, TRACE), (retried.id, TRACE), (untraced.id, {})]
    assert engines[1].traces == [(untraced.id, {}), (turn.id, TRACE)]


def slow_turn() -> dict[str, Any]:
    body = slow_chat(tokens=20, step_s=0.05)
    return {"messages": body.pop("messages"), "body": body}


async def test_a_job_that_is_published_again_has_its_trace_also_in_its_headers(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    engine = WatchedEngine()
    await start_worker(engine, max_running=1, look_ahead=0, sweep_interval_s=SWEEP_S)
    busy = await fleet.submit(slow_chat(tokens=10_000, step_s=0.05), pool=pool)
    await until_running(fleet, busy)
    job = await fleet.submit("hello", pool=pool, **TRACE)
    await foreign.channel.queue_purge(job_queue(pool))
    published: list[aiormq.abc.DeliveredMessage] = []

    async def is_published_again() -> bool:
        message = await foreign.channel.basic_get(job_queue(pool))
        published.extend([message] if message.delivery_tag else [])
        return bool(published)

    await eventually(is_published_again)
    assert published[0].header.properties.message_id == job.id
    assert published[0].header.properties.headers == TRACE
    assert published[0].delivery_tag is not None
    await foreign.channel.basic_nack(published[0].delivery_tag)
    await fleet.cancel(busy)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert engine.traces == [(busy.id, {}), (job.id, TRACE)]


async def test_a_trace_that_another_client_named_only_in_the_headers_is_kept_with_the_job(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    engine = WatchedEngine()
    await start_worker(engine)
    job = Job(id=new_job_id(), pool=pool, body=slow_chat(tokens=10_000, step_s=0.05))
    body = job.model_dump_json(exclude_none=True).encode()
    await foreign.publish(body, message_id=job.id, headers={"traceparent": PARENT})
    kept: list[Any] = []

    async def is_kept() -> bool:
        kept.extend(filter(None, [await store.get(request_key(job.id))]))
        return bool(kept)

    await eventually(is_kept)
    assert trace_of(kept[0]) == {"traceparent": PARENT}
    await until_running(fleet, job)
    await fleet.cancel(job)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    assert engine.traces == [(job.id, {"traceparent": PARENT})]


async def test_a_dead_letter_that_names_its_trace_only_in_the_headers_is_read_with_it(
    fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    job = Job(pool=pool, body=chat())
    body = job.model_dump_json(exclude_none=True).encode()
    await foreign.publish(body, exchange="inferfleet.dead", headers={"traceparent": PARENT})
    read: list[DeadLetter] = []

    async def is_read() -> bool:
        read.extend(await fleet.dead_letters.read(pool))
        return bool(read)

    await eventually(is_read)
    assert read[0].job == job.model_copy(update={"traceparent": PARENT})


async def test_a_dead_letter_and_its_replay_keep_the_trace_and_every_line_of_the_log_names_it(
    fleet: Fleet, foreign: ForeignClient, start_worker_process: StartWorkerProcess, pool: str
) -> None:
    worker = await start_worker_process(retry_base_s="0.05")
    job = await fleet.submit(chat(simulated={"fail": "engine_error"}), pool=pool, max_attempts=2, **TRACE)
    untraced = await fleet.submit("hello", pool=pool)
    await fleet.wait_many([job, untraced], timeout_s=PATIENCE_S)
    (letter,) = await fleet.dead_letters.read(pool)
    assert letter.job is not None
    assert (letter.job.traceparent, letter.job.tracestate) == tuple(TRACE.values())
    (again,) = await fleet.dead_letters.replay(pool, ids=[job.id])
    assert (again.traceparent, again.tracestate) == tuple(TRACE.values())
    await fleet.wait(again, timeout_s=PATIENCE_S)
    message = await foreign.dead_letter()
    headers = message.header.properties.headers or {}
    assert {name: headers.get(name) for name in TRACE} == TRACE
    assert await worker.stop() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    of_job = [line for line in lines if job.id in {line.get("job_id"), line.get("message_id")}]
    assert {line["message"] for line in of_job} == {"requeueing a job", "message dead-lettered", "job failed"}
    assert {line["trace_id"] for line in of_job} == {ID}
    assert all("trace_id" not in line for line in lines if line.get("job_id") == untraced.id)


def test_a_blocking_client_takes_the_current_span_of_the_thread_that_calls_it(
    producer_settings: Callable[..., ProducerSettings], pool: str
) -> None:
    context = SpanContext(int(ID, 16), 0xB7AD6B7169203331, is_remote=False, trace_flags=TraceFlags(1))
    with SyncFleet.connect(producer_settings()) as fleet:
        fleet.declare_pool(pool)
        with use_span(NonRecordingSpan(context)):
            job = fleet.submit("hello", pool=pool)
            (other,) = fleet.submit_many(["hello"], pool=pool)
        assert job.traceparent == other.traceparent == PARENT
        assert fleet.submit("hello", pool=pool).traceparent is None
