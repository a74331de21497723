"""The dead letters of a pool can be read whatever is among them, and each has one name."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    answer_to,
    chat,
    eventually,
)
from tests.integration.raw_publisher import RawPublisher

from inferfleet.local.services import Services, ServicesChoice
from inferfleet.producer import Fleet, dead_letters
from inferfleet.producer.dead_letters import DeadLetters, LetterFilter
from inferfleet.schemas import FailureCode, Job
from inferfleet.schemas.errors import (
    DeadLettersBusyError,
    InvalidJobError,
    PartialReplayError,
    ServiceUnreachableError,
    SessionBusyError,
)
from inferfleet.schemas.job import MAX_METADATA, OnBusy
from inferfleet.schemas.message import derived_id
from inferfleet.schemas.names import DEAD_EXCHANGE, dead_queue
from inferfleet.wire.rabbitmq.queue_reader import QueueReader, ReadMessage

HEADERS = 1 << 13


def table(entries: bytes) -> bytes:
    return struct.pack(">I", len(entries)) + entries


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


async def test_letters_that_clients_cannot_read_hide_no_others(
    fleet: Fleet, raw: RawPublisher, foreign: ForeignClient, services: Services, pool: str
) -> None:
    """RabbitMQ's own dead-lettering, by a policy, brings messages here with all of their properties."""
    if services.kind is ServicesChoice.EMBEDDED:
        pytest.skip("the embedded broker refuses at once what pamqp cannot read")
    unreadable = [
        table(short(b"k") + b"T" + b"\xff" * 8),
        table(short(b"\xff\xfe") + b"t\x01"),
        table(short(b"k") + b"B\xfa"),
        *(
            table(short(f"x-inferfleet-{name}".encode()) + b"S" + table(b"nonsense"))
            for name in ("code", "attempts", "died-at")
        ),
        table(short(b"x-inferfleet-message") + b"t\x01"),
    ]
    bodies = [b"letter %d" % number for number in range(len(unreadable))]
    for properties, body in zip(unreadable, bodies, strict=True):
        assert await raw.publish(HEADERS, properties, body, exchange=DEAD_EXCHANGE)
    letters = await fleet.dead_letters.read(pool)
    assert [letter.message_id for letter in letters] == [derived_id(body, None) for body in bodies]
    assert {letter.code for letter in letters} == {FailureCode.INTERNAL}
    assert await fleet.dead_letters.purge(pool, ids=[letters[2].message_id]) == 1
    left = [letter.message_id for letter in await fleet.dead_letters.read(pool)]
    assert left == [derived_id(body, None) for body in bodies if body != bodies[2]]


async def test_a_letter_without_an_id_has_the_same_name_whenever_it_is_read(
    fleet: Fleet, raw: RawPublisher, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    bodies = [b"garbage 1", b"garbage 2", b'{"body": {}}', b'{"body": {"messages": []}}']
    for body in bodies:
        assert await raw.publish(0, b"", body)
    await foreign.publish(b"garbage 3", message_id="from-afar")

    async def buried() -> bool:
        return await foreign.waiting(dead_queue(pool)) == len(bodies) + 1

    await eventually(buried)
    first, second = [await fleet.dead_letters.read(pool) for _ in range(2)]
    assert first == second
    assert {letter.message_id for letter in first} == {
        *(derived_id(body, None) for body in bodies),
        derived_id(b"garbage 3", "from-afar"),
    }
    for letter in first:
        found = await fleet.dead_letters.read(pool, ids=[letter.message_id])
        assert found == [letter]


async def test_a_job_without_a_pool_is_replayed_in_the_one_that_it_was_in(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    job = Job(body=chat("again"))
    await foreign.publish(
        job.model_dump_json(include={"id", "body"}).encode(), exchange=DEAD_EXCHANGE, message_id=job.id
    )
    await start_worker()
    (again,) = await fleet.dead_letters.replay(pool, ids=[job.id])
    assert (again.pool, again.metadata["replayed_from"]) == (pool, job.id)
    assert (await fleet.wait(again, timeout_s=PATIENCE_S)).text == answer_to(again)
    assert await fleet.dead_letters.read(pool) == []


async def test_dead_letters_are_replayed_by_conditions(
    fleet: Fleet, foreign: ForeignClient, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    fails = chat("fails", simulated={"fail": "out_of_memory", "fail_times": 1})
    jobs = [
        await fleet.submit(fails, pool=pool, max_attempts=1, metadata={"team": team})
        for team in ("a", "a", "b")
    ]
    await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
    await foreign.publish(b"not a job")

    async def all_buried() -> bool:
        return await fleet.dead_letters.count(pool) == 4

    await eventually(all_buried)
    of_a = LetterFilter(message="out_of_memory", metadata={"team": "a"})
    assert await fleet.dead_letters.count(pool, where=of_a) == 2
    assert await fleet.dead_letters.count(pool, where=LetterFilter(message="engine_error")) == 0
    assert await fleet.dead_letters.count(pool, where=LetterFilter(session_id="s")) == 0
    again = await fleet.dead_letters.replay(pool, where=of_a)
    assert {job.metadata["replayed_from"] for job in again} == {job.id for job in jobs[:2]}
    left = [letter.message_id for letter in await fleet.dead_letters.read(pool)]
    assert jobs[2].id in left
    assert not {job.id for job in jobs[:2]} & {*left}
    with pytest.raises(InvalidJobError, match="at least one condition"):
        await fleet.dead_letters.replay(pool, where=LetterFilter())


async def test_the_command_retries_by_conditions(
    fleet: Fleet, inferfleet: RunCommand, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    fails = chat("fails", simulated={"fail": "out_of_memory", "fail_times": 1})
    job = await fleet.submit(fails, pool=pool, max_attempts=1)
    await fleet.wait(job, timeout_s=PATIENCE_S)
    where = ("jobs", "retry", "--where", f"pool={pool}", "--where", "message=out_of_memory")
    dry = await inferfleet(*where)
    assert (dry.code, dry.out) == (0, "1 dead letters\n")
    assert "add --yes" in dry.err
    assert await fleet.dead_letters.count(pool) == 1
    done = await inferfleet(*where, "--yes", "--json")
    (again,) = json.loads(done.out)["jobs"]
    assert (await fleet.wait(again, timeout_s=PATIENCE_S)).state == "failed"
    refused = await inferfleet(*where[:4])
    assert (refused.code, refused.out) == (2, "")
    assert "give the pool and another condition" in refused.err


async def test_a_refused_letter_holds_up_no_other(
    fleet: Fleet, foreign: ForeignClient, inferfleet: RunCommand, pool: str
) -> None:
    await fleet.declare_pool(pool)
    await fleet.submit(chat("unfinished"), pool=pool, session_id=pool)
    full = {f"m{number}": "x" for number in range(MAX_METADATA)}
    jobs = [
        Job(pool=pool, body=chat("first"), metadata=full),
        Job(pool=pool, body=chat("refused"), session_id=pool, on_busy=OnBusy.REJECT),
        Job(pool=pool, body=chat("last")),
    ]
    for job in jobs:
        await foreign.publish(job.model_dump_json().encode(), exchange=DEAD_EXCHANGE, message_id=job.id)

    with pytest.raises(PartialReplayError, match=r"2 of .* again; 1 were refused") as partial:
        await fleet.dead_letters.replay(pool, everything=True)

    assert [again.body for again in partial.value.jobs] == [jobs[0].body, jobs[2].body]
    assert partial.value.jobs[0].metadata == full
    assert isinstance(partial.value.refused[jobs[1].id], SessionBusyError)
    assert [letter.message_id for letter in await fleet.dead_letters.read(pool)] == [jobs[1].id]

    await foreign.publish(jobs[2].model_dump_json().encode(), exchange=DEAD_EXCHANGE, message_id=jobs[2].id)
    where = ("--where", f"pool={pool}", "--where", "priority=4")
    for command, count in (("dead", "replay", "--all", "--pool", pool), 1), (("jobs", "retry", *where), 0):
        told = await inferfleet(*command, "--yes")
        assert (told.code, len(told.out.split())) == (1, count)
        assert f"dead letter {jobs[1].id} stays: session" in told.err


async def test_a_service_that_fails_leaves_the_letters_behind_untried(
    fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    await fleet.declare_pool(pool)
    jobs = [Job(pool=pool, body=chat(str(number))) for number in range(3)]
    for job in jobs:
        await foreign.publish(job.model_dump_json().encode(), exchange=DEAD_EXCHANGE, message_id=job.id)
    submitted: list[Job] = []

    async def submit(job: Job) -> Job:
        if submitted:
            raise ServiceUnreachableError("Redis is away")
        submitted.append(job)
        return job

    letters = DeadLetters(fleet.settings, submit)
    with pytest.raises(PartialReplayError, match="the others were not tried: Redis is away") as partial:
        await letters.replay(pool, everything=True)
    assert list(partial.value.jobs) == submitted
    assert [letter.message_id for letter in await fleet.dead_letters.read(pool)] == [
        job.id for job in jobs[1:]
    ]
    with pytest.raises(ServiceUnreachableError):
        await letters.replay(pool, everything=True)


@contextmanager
def acks_that_break(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Break the connection before each ack is sent."""
    ack = QueueReader.ack

    def broken(queue: QueueReader, message: ReadMessage) -> None:
        queue._stream.abort()  # pyright: ignore[reportPrivateUsage]
        ack(queue, message)

    with monkeypatch.context() as breaking:
        breaking.setattr(QueueReader, "ack", broken)
        yield


async def test_letters_are_not_said_to_be_deleted_if_the_connection_breaks(
    fleet: Fleet, foreign: ForeignClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.declare_pool(pool)
    job = Job(pool=pool, body=chat())
    await foreign.publish(job.model_dump_json().encode(), exchange=DEAD_EXCHANGE, message_id=job.id)
    with acks_that_break(monkeypatch), pytest.raises(ServiceUnreachableError):
        await fleet.dead_letters.purge(pool, ids=[job.id])
    assert [letter.message_id for letter in await fleet.dead_letters.read(pool)] == [job.id]


async def test_a_replay_whose_connection_breaks_says_what_it_has_submitted(
    fleet: Fleet, foreign: ForeignClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.declare_pool(pool)
    jobs = [Job(pool=pool, body=chat(str(number))) for number in range(3)]
    for job in jobs:
        await foreign.publish(job.model_dump_json().encode(), exchange=DEAD_EXCHANGE, message_id=job.id)
    told = "1 of the dead letters were submitted again"
    with acks_that_break(monkeypatch), pytest.raises(PartialReplayError, match=told) as partial:
        await fleet.dead_letters.replay(pool, everything=True)
    assert isinstance(partial.value.stopped, ServiceUnreachableError)
    (again,) = partial.value.jobs
    # Its letter is still there, and means the same job.
    replayed = await fleet.dead_letters.replay(pool, everything=True)
    assert len(replayed) == 3
    assert again.id in {job.id for job in replayed}
    assert await foreign.waiting() == 3


async def test_what_one_client_reads_is_not_missing_for_another(
    fleet: Fleet, foreign: ForeignClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ shows nobody else the letters that a client has read, so others would find fewer."""
    await fleet.declare_pool(pool)
    jobs = [Job(pool=pool, body=chat(str(number))) for number in range(3)]
    for job in jobs:
        await foreign.publish(job.model_dump_json().encode(), exchange=DEAD_EXCHANGE, message_id=job.id)
    reached, released = asyncio.Event(), asyncio.Event()

    async def refuse(job: Job) -> Job:
        if job.metadata["replayed_from"] == jobs[1].id:
            reached.set()
            await released.wait()
        raise InvalidJobError("refused")

    holding = asyncio.create_task(DeadLetters(fleet.settings, refuse).replay(pool, everything=True))
    await asyncio.wait_for(reached.wait(), PATIENCE_S)
    with monkeypatch.context() as impatient:
        impatient.setattr(dead_letters, "BUSY_S", 0.2)
        for look in (
            fleet.dead_letters.read(pool, ids=[jobs[0].id]),
            fleet.dead_letters.count(pool),
            fleet.dead_letters.purge(pool, everything=True),
        ):
            with pytest.raises(DeadLettersBusyError, match="another client has the dead letters"):
                await look
    monkeypatch.setattr(dead_letters, "BUSY_S", PATIENCE_S)
    waiting = asyncio.create_task(fleet.dead_letters.count(pool))
    released.set()
    with pytest.raises(PartialReplayError, match="3 were refused"):
        await holding
    assert await asyncio.wait_for(waiting, PATIENCE_S) == 3
    assert await fleet.dead_letters.purge(pool, everything=True) == 3


async def test_dead_letters_whose_queue_was_deleted_are_none(
    fleet: Fleet, foreign: ForeignClient, pool: str
) -> None:
    await foreign.channel.queue_delete(dead_queue(pool))
    assert await fleet.dead_letters.read(pool) == []
    await foreign.publish(b"bound again", exchange=DEAD_EXCHANGE)
    assert len(await fleet.dead_letters.read(pool)) == 1


@pytest.mark.parametrize("name", ["ä", "a%2f", "a\x1b[31m", "A B", ""])
async def test_the_name_of_no_pool_is_said_to_be_none(fleet: Fleet, name: str) -> None:
    for look in (
        fleet.dead_letters.read(name),
        fleet.dead_letters.count(name),
        fleet.dead_letters.replay(name, everything=True),
        fleet.dead_letters.purge(name, everything=True),
    ):
        with pytest.raises(InvalidJobError, match="is not a pool name"):
            await look
