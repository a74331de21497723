"""Every script touches keys of one hash slot of a Redis Cluster, and no others than it is given."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from inferfleet.schemas import Job, JobState, Result
from inferfleet.schemas.batch import BatchState
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import QueuedEntry, RestartReason
from inferfleet.schemas.names import job_key, request_key, run_key, run_steps_key, swap_key
from inferfleet.schemas.retrieval import Document, Embedding, IndexOptions
from inferfleet.schemas.rollout import Rollout
from inferfleet.schemas.run import RunState
from inferfleet.schemas.session import Turn
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis import (
    batch_scripts,
    idempotency,
    index_scripts,
    job_endings,
    job_scripts,
    pool_scripts,
    process_scripts,
    run_scripts,
    session_scripts,
    webhook_scripts,
)
from inferfleet.wire.redis.attempts import Fence
from inferfleet.wire.redis.batches import BatchRecords
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.ended_counts import add_counts
from inferfleet.wire.redis.fleet_history import FleetHistory
from inferfleet.wire.redis.heartbeats import write_heartbeat
from inferfleet.wire.redis.indexes import BegunDocument, IndexStore
from inferfleet.wire.redis.job_listing import unfinished
from inferfleet.wire.redis.journal_lines import PendingTokens
from inferfleet.wire.redis.lost_messages import LostMessages, Marks, OpenJob
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.pool_limits import WaitingTurns
from inferfleet.wire.redis.pools import pause_pool
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.replies import Replies
from inferfleet.wire.redis.rollouts import change_rollout, lead_rollout
from inferfleet.wire.redis.runs import Runs
from inferfleet.wire.redis.script import LOADED, SCRIPTS, Argument, Command
from inferfleet.wire.redis.session_histories import SessionHistories
from inferfleet.wire.redis.session_lanes import Payload, SessionLanes
from inferfleet.wire.redis.session_records import SessionRecords
from inferfleet.wire.redis.shared_limits import SharedLimits
from inferfleet.wire.redis.shares import PoolShares, Served, add_served
from inferfleet.wire.redis.webhooks import Claimed, WatchedJob, WebhookEndpoint, WebhookStore

ROOT = Path(__file__).parents[2]
LUA = ROOT / "wire" / "inferfleet" / "wire" / "redis" / "lua"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(session_id="s", body={"messages": []}, idempotency_key="k", submitted_at=NOW)
WITNESS = JOB.model_copy(update={"id": new_job_id()})
FENCE = Fence("f", 1)

ANSWERS: dict[str, Any] = {
    "HGET": None,
    "HMGET": [None] * 4,
    "VCARD": 0,
    "ZRANGE": [b"e"],
    "ZRANGE WITHSCORES": [(b"e", 1.0)],
    SCRIPTS["standing"].sha: b"missing",
    SCRIPTS["webhook_claim"].sha: [1],
}
"""What lets a method get to its script."""


class NotAnsweredError(Exception):
    """The test needs no more than the question."""


class Recorder:
    """Notes which keys scripts are called with."""

    ordered = True

    def __init__(self) -> None:
        self.clock = RedisClock()
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.on_connect: list[Callable[[], None]] = []

    def check_home(self) -> None: ...

    def enqueue(self, *command: Argument) -> asyncio.Future[Any]:
        name = str(command[0])
        if name == "EVALSHA":
            name = str(command[1])
            self.calls.append((name, tuple(str(key) for key in command[3 : 3 + int(command[2])])))
        if command[-1] == "WITHSCORES":
            name += " WITHSCORES"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if name in ANSWERS:
            answer.set_result(ANSWERS[name])
        else:
            answer.set_exception(NotAnsweredError)
        return answer

    async def execute(self, *command: Argument) -> Any:
        return await self.enqueue(*command)

    async def learn_time(self) -> None:
        pass


async def all_that_calls_scripts(pipeline: CommandPipeline) -> AsyncIterator[Awaitable[Any]]:
    records = JobRecords(pipeline=pipeline, result_ttl_s=1, queued_ttl_s=1)
    lanes = SessionLanes(pipeline=pipeline, settings=ServiceSettings())
    histories = SessionHistories(pipeline=pipeline, settings=ServiceSettings())
    session_records = SessionRecords(pipeline=pipeline, settings=ServiceSettings())
    result = Result(job_id=JOB.id, state=JobState.SUCCEEDED)
    entry = QueuedEntry(at=NOW)
    turn = Turn(job_id=JOB.id, messages=({"role": "user", "content": "hi"},), at=NOW)
    by: dict[str, Any] = {"worker_id": "w", "lease_s": 1}
    written: dict[str, Any] = {"fence": FENCE, "pending": PendingTokens(0)}
    yield records.create(JOB, reply_to="c", call="call", key="k")
    yield records.standing(JOB.id)
    yield records.close(JOB.id, call="call")
    yield records.discard(JOB.id)
    yield records.cancel(JOB.id, result)
    yield records.copied(JOB.id)
    yield records.start(JOB, token="t", resumable=True, alone=True, reply_to="c", **by)
    yield records.restart(
        JOB.id,
        fence=FENCE,
        worker_id="w",
        model_identity="",
        reason=RestartReason.NOT_RESUMABLE,
        tokens_wasted=0,
    )
    yield records.append(JOB.id, lease_s=1, **written)
    yield records.note(JOB.id, lease_s=1, entry=entry, number=1, **written)
    yield records.finish(JOB, result, reply_to="", **written)
    yield records.release(JOB.id, entry=entry, refund=True, **written)
    yield records.restore(JOB, fence=FENCE, charged=1, started_at=NOW, chunks=(), reply_to="c", **by)
    yield Replies(pipeline).tell("c", JOB.id, JobState.SUCCEEDED)
    yield idempotency.claim(pipeline, JOB, call="call", ttl_s=1)
    yield idempotency.forget(pipeline, idempotency.Claim(JOB, "key", "holder", accepted=False))
    yield write_heartbeat(pipeline, cast("Any", Heartbeat).model_construct(worker_id="w"), ttl_s=1)
    yield FleetHistory(pipeline, recorder="r").is_recorder()
    yield WaitingTurns(pipeline, lane_ttl_s=1).count(JOB)
    lost = LostMessages(pipeline, pool="p")
    yield lost.report(sweeper="s", lease_s=1, held=[JOB.id], held_s=1, fronts={})
    yield records.move(JOB, from_pool="canary")
    yield pipeline.execute(*job_scripts.follow(job_key(JOB.id), follower="f", tenant="t", most=1, call="c"))
    yield pipeline.execute(*job_scripts.unfollow(job_key(JOB.id), follower="f", tenant="t", known_call=b""))
    keys = (job_key(JOB.id), request_key(JOB.id))
    yield pipeline.execute(*job_scripts.let_go(*keys, request=b"", size="", ttl_s=1, call=""))
    yield pause_pool(pipeline, "p")
    rollout = Rollout(pool="p", to="q", steps=(100,), interval_s=1, started_at=NOW, since=NOW)
    yield change_rollout(pipeline, rollout, revision=0)
    yield lead_rollout(pipeline, "p", controller="c", lease_s=1)
    yield pipeline.execute(*pool_scripts.lease(swap_key("p"), holder="h", lease_ms=1))
    yield add_counts(pipeline, "p", {"succeeded": 1}, call="w:1")
    yield lost.open_jobs(4, from_ms=0, below_ms=1, limit=1)
    yield anext(unfinished(pipeline, "p", 4))
    yield lost.forget(4, [OpenJob(JOB.id, 1, 0)])
    yield lost.revive(JOB.id, Marks(*["0"] * len(Marks._fields)), priority=4, call="call")
    yield lanes.enter(Payload(JOB, "c"))
    yield lanes.front(JOB)
    yield lanes.published(JOB, witness=WITNESS)
    yield lanes.advance(JOB, witness=WITNESS)
    yield lanes.withdraw(JOB)
    yield histories.begin(JOB, fence=FENCE)
    yield histories.renew(JOB, fence=FENCE, witness=WITNESS)
    yield histories.append(JOB, fence=FENCE, turn=turn, answer=b"", state=None)
    yield session_records.replace_state("s", 1, version=0)
    yield session_records.create("s", (), state=1, idle_ttl_s=None, max_history_tokens=None)
    yield session_records.configure("s", idle_ttl_s=1, max_history_tokens=None)
    yield session_records.delete("s")
    webhooks = WebhookStore(pipeline)
    yield webhooks.add(
        WebhookEndpoint(
            id="e",
            tenant="t",
            name="n",
            url="u",
            event_types=("job.failed",),
            secret="s",
            created_ms=1,
            updated_ms=1,
        )
    )
    yield webhooks.change("t", "e", {"name": "n"})
    yield webhooks.remove("t", "e")
    yield webhooks.watch([WatchedJob("job", JOB.id, "t")])
    yield webhooks.claim("e", for_ms=1, limit=1)
    yield webhooks.enter("t", WebhookEvent("job.failed", JOB.id, 1), most=1)
    yield webhooks.drop("e")
    yield webhooks.settle("e", Claimed(0, WebhookEvent("job.failed", JOB.id, 1)))
    yield SharedLimits(pipeline, ttl_s=1).reserve("k", ["j"], most=1)
    yield SharedLimits(pipeline, ttl_s=1).guaranteed("k", 1, per_minute=1)
    yield PoolShares(pipeline, ttl_s=1, slots={"p": 1}).place("p", "t", JOB.id)
    yield PoolShares(pipeline, ttl_s=1).give_back("p", "t", JOB.id, 1.0)
    yield add_served(pipeline, "p", "w", Served(0, "t", 1, [JOB.id]), ttl_s=1)
    batches = BatchRecords(pipeline)
    yield batches.reserve("t", "b", most=1)
    yield batches.claim("b", runner="r", lease_s=1)
    yield batches.change("b", runner="r", lease_s=1, state=BatchState.FAILED, expiring="1")
    yield batches.cancel("b")
    runs = Runs(pipeline, queued_ttl_s=1, result_ttl_s=1)
    # Runs.create lists the queue first.
    keys_of_run = run_key(JOB.id), run_steps_key(JOB.id)
    yield pipeline.execute(
        *run_scripts.run_create(*keys_of_run, order="", agent="a", tenant="", created_ms=0, ttl_s=1)
    )
    yield runs.claim(JOB.id, fence="f", runner="r", lease_s=1)
    yield runs.append(JOB.id, [], fence="f", lease_s=1, position=0, moved_on=False)
    yield runs.settle(JOB.id, RunState.QUEUED, fence="f", told=0)
    yield runs.tell(JOB.id, "cancel", "")
    yield runs.look("q", again_ms=1)
    index = IndexStore(pipeline, name="i", tenant="t")
    document = BegunDocument("d", "g", "digest", "version", b"{}", frozenset())
    embedding = Embedding(model="m", identity="", dimensions=1)
    yield index.create(IndexOptions(pool="p"))
    yield index.delete("g")
    yield index.begin(Document(id="d", text="t"), generation="g")
    yield index.store(document, "c", "t", b"", embedding=embedding)
    yield index.drop(document, ["c"])
    yield index.forget(document)


async def test_each_call_of_a_script_is_about_one_slot() -> None:
    recorder = Recorder()
    async for call in all_that_calls_scripts(cast("CommandPipeline", recorder)):
        with suppress(NotAnsweredError):
            await call
    assert {sha for sha, _ in recorder.calls} == {script.sha for script in LOADED}
    several = [keys for _, keys in recorder.calls if len({slot_of(key) for key in keys}) != 1]
    assert several == []


def slot_of(key: str) -> str:
    """What Redis Cluster makes a key's slot of."""
    tag = re.search(r"\{(.+?)\}", key)
    return tag[1] if tag else key


def test_scripts_have_all_their_keys_from_their_callers() -> None:
    assert [script.name for script in SCRIPTS.values() if "inferfleet:" in script.text] == []


CALLS: dict[Callable[..., Command], Iterable[inspect.Parameter]] = {
    function: parameters
    for module in (
        batch_scripts,
        index_scripts,
        job_scripts,
        session_scripts,
        pool_scripts,
        process_scripts,
        run_scripts,
        webhook_scripts,
    )
    for function in vars(module).values()
    if inspect.isfunction(function)
    for parameters in [inspect.signature(function).parameters.values()]
}
"""What makes a call of a script, and what it is given."""


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_a_text_begins_with_the_names_that_it_is_called_with(function: Callable[..., Command]) -> None:
    keys = [each.name for each in CALLS[function] if each.kind is each.POSITIONAL_ONLY]
    arguments = [each.name for each in CALLS[function] if each.kind is each.KEYWORD_ONLY]
    rest = [each.name for each in CALLS[function] if each.kind is each.VAR_POSITIONAL]

    command = function(*keys, *rest, **{name: name for name in arguments})

    assert command[:1] + command[2:] == ("EVALSHA", len(keys), *keys, *arguments, *rest)
    (script,) = [script for script in SCRIPTS.values() if script.sha == command[1]]
    head, _, code = script.text.partition("\n\n")
    header = [line.partition(" -- ")[0] for line in head.splitlines() if not line.startswith("--")]
    assert header == [
        f"local {', '.join(keys)} = {', '.join(f'KEYS[{number}]' for number in range(1, len(keys) + 1))}",
        *(f"local {name} = ARGV[{number}]" for number, name in enumerate(arguments, 1)),
    ]
    assert not re.search(r"(KEYS|ARGV)\[\d", code)


def test_every_script_has_a_function_that_calls_it() -> None:
    assert len(CALLS) == len(SCRIPTS)


def test_every_end_of_a_job_is_written_in_one_place() -> None:
    texts = {path.name: path.read_text() for path in LUA.rglob("*.lua")}
    written = {
        (name, state)
        for name, text in texts.items()
        for state in re.findall(r"'HSET', job_key, 'state', ([\w']+)", text)
    }

    assert [name for name, text in texts.items() if "'finished_at'" in text] == ["end_job.lua"]
    assert {state for name, state in written if name != "end_job.lua"} == {"'queued'", "'running'"}
    ends = {name for name, text in texts.items() if "-- part: end_job" in text}
    assert ends == {"finish.lua", "cancel.lua"}


def test_every_end_of_a_job_comes_by_one_function() -> None:
    callers = {
        path.name
        for layer in ("wire", "producer", "worker", "cli", "exporter")
        for path in (ROOT / layer).rglob("*.py")
        if re.search(r"job_scripts\.(finish|cancel)\b", path.read_text())
    }

    assert callers == {"job_endings.py"}
    assert inspect.getsource(job_endings).count("self._pipeline.enqueue") == 1
