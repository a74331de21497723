"""``inferfleet doctor`` finds each of these mistakes on real servers, and nothing in a healthy fleet."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as aioredis
from tests.conftest import Control
from tests.integration.conftest import (
    PATIENCE_S,
    ForeignClient,
    RunCommand,
    StartWorker,
    eventually,
    slow_chat,
    until_running,
)
from tests.integration.test_stalled_jobs import stall

from inferfleet.local.chaos.proxy import Proxy
from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.producer import Fleet
from inferfleet.producer.doctor import diagnosis
from inferfleet.producer.doctor import services as service_checks
from inferfleet.producer.doctor.diagnosis import diagnose
from inferfleet.producer.doctor.finding import Check, Finding, Severity
from inferfleet.producer.pools import Pools
from inferfleet.schemas import Job
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.names import (
    dead_queue,
    held_key,
    job_key,
    job_queue,
    open_key,
    request_key,
    rollout_key,
    session_key,
)
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.rabbitmq.management_answers import QueueAnswer
from inferfleet.wire.rabbitmq.publishing import Depth
from inferfleet.wire.redis.heartbeats import forget_heartbeat, write_heartbeat
from inferfleet.wire.redis.lost_messages import LostMessages
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.rollouts import change_rollout, lead_rollout
from inferfleet.worker.engines.simulated import SimulatedEngine

LONG_AGO = 1000
"""In Unix milliseconds."""


class Doctor:
    """Diagnoses one pool, as it is seen with the settings of a client."""

    def __init__(self, settings: Callable[..., ProducerSettings], pool: str) -> None:
        self._settings = settings
        self.pool = pool

    async def findings(self, management_url: str | None = None, **settings: Any) -> list[Finding]:
        found = diagnose(self._settings(**settings), pools=[self.pool], management_url=management_url)
        async with aclosing(found):
            return [finding async for finding in found]

    async def checks(self, management_url: str | None = None, **settings: Any) -> set[Check]:
        findings = await self.findings(management_url, **settings)
        assert all(finding.what and finding.remedy for finding in findings)
        return {finding.check for finding in findings}


@pytest.fixture
def doctor(
    services: Services,
    real_redis: None,
    fleet: Fleet,
    pool: str,
    producer_settings: Callable[..., ProducerSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> Doctor:
    monkeypatch.setattr(diagnosis, "LOOK_AGAIN_S", 0.0)
    if services.store is None:
        pytest.skip(f"whether these are set up well is not known: {services.description}")
    return Doctor(producer_settings, pool)


@asynccontextmanager
async def configured(store: aioredis.Redis, **options: Any) -> AsyncIterator[None]:
    """Change Redis' configuration while the block runs."""
    names = {name: name.replace("_", "-") for name in options}
    before = {names[name]: (await store.config_get(names[name]))[names[name]] for name in options}
    for name, value in options.items():
        await store.config_set(names[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            await store.config_set(name, value or "")


def heartbeat(pool: str, clock: Any, **changes: Any) -> Heartbeat:
    fields = {
        "worker_id": f"ghost-{uuid4().hex[:8]}",
        "pool": pool,
        "phase": WorkerPhase.READY,
        "engine": "simulated",
        "model": "m",
        "version": "0.0.1",
        "started_at": clock.now(),
        "seen_at": clock.now(),
        **changes,
    }
    return Heartbeat.model_validate(fields)


@asynccontextmanager
async def ghost(pipeline: CommandPipeline, pool: str, **changes: Any) -> AsyncIterator[None]:
    """A worker of which there is only a heartbeat."""
    await pipeline.learn_time()
    its = heartbeat(pool, pipeline.clock, **changes)
    await write_heartbeat(pipeline, its, ttl_s=600)
    try:
        yield
    finally:
        await forget_heartbeat(pipeline, its.worker_id)


async def age(store: aioredis.Redis, *jobs: Job) -> None:
    """Let jobs be in the index for long."""
    for job in jobs:
        await store.zadd(open_key(job.pool, job.priority), {job.id: LONG_AGO})


async def test_a_healthy_fleet_has_no_finding(
    doctor: Doctor,
    fleet: Fleet,
    start_worker: StartWorker,
    store: aioredis.Redis,
    inferfleet: RunCommand,
    services: Services,
    pool: str,
) -> None:
    await start_worker(max_running=1, look_ahead=0, sweep_interval_s=0.2)
    await fleet.wait(await fleet.submit("hello", pool=pool), timeout_s=PATIENCE_S)
    running = await fleet.submit(slow_chat(tokens=1000, step_s=0.1), pool=pool, session_id=f"s-{pool}")
    await until_running(fleet, running)
    turn = await fleet.submit("turn", pool=pool, session_id=f"s-{pool}")
    waiting = await fleet.submit("waits", pool=pool)
    await age(store, running, turn, waiting)

    assert await doctor.findings() == []
    ended = await inferfleet("doctor", "--pool", pool, "--json")
    assert (ended.code, json.loads(ended.out), ended.err) == (0, [], "")


def test_the_embedded_services_are_for_development() -> None:
    async def look() -> list[Finding]:
        settings = ProducerSettings(amqp_url=services.amqp_url, redis_url=services.redis_url)
        async with aclosing(diagnose(settings)) as found:
            return [finding async for finding in found if finding.subject in {"RabbitMQ", "Redis"}]

    with running_services(ServicesChoice.EMBEDDED) as services:
        findings = asyncio.run(look())
    assert {finding.severity for finding in findings} == {Severity.WARNING}
    (broker,) = [finding for finding in findings if finding.check is Check.RABBITMQ_VERSION]
    assert broker.what.startswith("it is inferfleet embedded broker ")


# Redis


async def test_redis_out_of_reach_or_with_another_password(doctor: Doctor, services: Services) -> None:
    assert await doctor.checks(redis_url="redis://127.0.0.1:1/0") == {Check.REDIS_UNREACHABLE}
    wrong = services.redis_url.replace("redis://", "redis://nobody:wrong@")
    assert await doctor.checks(redis_url=wrong) <= {Check.REDIS_RIGHTS, Check.REDIS_UNREACHABLE}
    assert await doctor.checks(redis_url=wrong)


async def test_a_right_is_missing_at_redis(doctor: Doctor, store: aioredis.Redis, services: Services) -> None:
    user = f"u-{uuid4().hex[:8]}"
    await store.execute_command("ACL", "SETUSER", user, "on", ">secret", "~*", "+@all", "-zadd")
    try:
        url = services.redis_url.replace("redis://", f"redis://{user}:secret@")
        findings = await doctor.findings(redis_url=url)
        assert [finding.check for finding in findings] == [Check.REDIS_RIGHTS]
        assert "ZADD" in findings[0].what
    finally:
        await store.execute_command("ACL", "DELUSER", user)


async def test_redis_evicts(doctor: Doctor, store: aioredis.Redis) -> None:
    async with configured(store, maxmemory="10gb", maxmemory_policy="allkeys-lru"):
        assert await doctor.checks() == {Check.REDIS_EVICTION}
        (finding,) = await doctor.findings(allow_eviction=True)
        assert finding.severity is Severity.WARNING


async def test_redis_is_nearly_full(doctor: Doctor, store: aioredis.Redis) -> None:
    used = int((await store.info("memory"))["used_memory"])
    async with configured(store, maxmemory=str(int(used * 1.08))):
        assert await doctor.checks() == {Check.REDIS_MEMORY}


async def test_redis_keeps_no_append_only_file(doctor: Doctor, store: aioredis.Redis) -> None:
    async with configured(store, appendonly="no"):
        assert await doctor.checks() == {Check.REDIS_PERSISTENCE}


async def test_the_replicas_that_writes_wait_for_are_not_there(doctor: Doctor) -> None:
    assert await doctor.checks(redis_wait_replicas=1) == {Check.REDIS_REPLICAS}


async def test_this_machines_clock_is_wrong(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    own = time.time
    monkeypatch.setattr("inferfleet.producer.doctor.services.time.time", lambda: own() + 60)
    findings = await doctor.findings()
    assert [finding.check for finding in findings] == [Check.CLOCK]
    assert "ahead of Redis'" in findings[0].what


async def test_a_variable_is_misspelt(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_REDIS_ULR", "redis://elsewhere")
    assert await doctor.checks() == {Check.SETTING_UNKNOWN}


# RabbitMQ


@pytest.mark.parametrize("wrong", ["port", "password", "virtual host"])
async def test_rabbitmq_out_of_reach(doctor: Doctor, services: Services, wrong: str) -> None:
    urls = {
        "port": "amqp://guest:guest@127.0.0.1:1/",
        "password": services.amqp_url.replace("guest:guest@", "guest:wrong@"),
        "virtual host": services.amqp_url.rstrip("/") + "/no-such-host",
    }
    assert urls[wrong] != services.amqp_url
    assert await doctor.checks(amqp_url=urls[wrong]) == {Check.RABBITMQ_UNREACHABLE}


async def test_a_permission_is_missing_at_rabbitmq(
    doctor: Doctor, services: Services, control: Control
) -> None:
    user = f"u-{uuid4().hex[:8]}"
    url = services.amqp_url.replace("guest:guest@", f"{user}:secret@")
    await control("add_user", user, "secret")
    try:
        for missing in ("configure", "write", "read"):
            granted = ["" if right == missing else ".*" for right in ("configure", "write", "read")]
            await control("set_permissions", user, *granted)
            assert await doctor.checks(amqp_url=url) == {Check.RABBITMQ_RIGHTS}, missing
    finally:
        await control("delete_user", user)


async def test_rabbitmq_has_no_memory_left(
    doctor: Doctor, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferfleet.producer.doctor.diagnosis.CONFIRM_S", 0.5)
    await control("set_vm_memory_high_watermark", "0.000001")
    try:
        assert await doctor.checks() == {Check.RABBITMQ_BLOCKED}
    finally:
        await control("set_vm_memory_high_watermark", "0.4")


async def test_a_policy_lets_a_queue_drop_jobs(
    managed: Services, producer_settings: Callable[..., ProducerSettings], pool: str
) -> None:
    assert managed.broker is not None
    urls = {"amqp_url": managed.amqp_url, "redis_url": managed.redis_url}
    await asyncio.to_thread(
        managed.broker.control,
        "set_policy",
        pool,
        f"^inferfleet[.]jobs[.]{pool}$",
        '{"message-ttl": 86400000}',
    )
    async with Fleet.connect(producer_settings(**urls)) as fleet:
        await fleet.declare_pool(pool)
    doctor = Doctor(producer_settings, pool)
    refused = "http://guest:wrong@" + (managed.management_url or "").partition("@")[2]
    assert await doctor.checks(refused, **urls) == {Check.MANAGEMENT}

    async def found() -> bool:
        return await doctor.checks(managed.management_url, **urls) == {Check.RABBITMQ_POLICY}

    await eventually(found)


@pytest.mark.parametrize(
    ("queue", "what"),
    [
        ({"effective_policy_definition": {"max-length": 5}}, "max-length without reject-publish"),
        ({"effective_policy_definition": {"delivery-limit": 20}}, "delivery-limit"),
        ({"arguments": {"x-consumer-timeout": 60_000}}, "consumer-timeout is 60 s"),
        ({"effective_policy_definition": {"consumer-timeout": 60_000}}, "consumer-timeout is 60 s"),
    ],
)
def test_what_rabbitmqs_api_says_of_a_queue_is_judged(queue: dict[str, Any], what: str) -> None:
    (finding,) = service_checks.policy_findings("p", QueueAnswer(name="p", **queue))
    assert what in finding.what
    policy = {"max-length": 5, "overflow": "reject-publish", "delivery-limit": -1}
    harmless = QueueAnswer(name="p", effective_policy_definition=policy)
    assert list(service_checks.policy_findings("p", harmless)) == []


async def test_without_the_extra_for_rabbitmqs_api_the_other_checks_are_made(
    doctor: Doctor, fleet: Fleet, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inferfleet.wire.rabbitmq.management", None)
    await fleet.submit("hello", pool=pool)
    assert await doctor.checks("http://127.0.0.1:1") == {Check.MANAGEMENT, Check.NO_WORKER}


async def test_that_rabbitmqs_api_is_away_is_found_once_for_all_pools(
    doctor: Doctor, fleet: Fleet, pool: str, producer_settings: Callable[..., ProducerSettings]
) -> None:
    names = [pool, f"{pool}-other", f"{pool}-third"]
    for name in names:
        await fleet.declare_pool(name)
    await fleet.submit("hello", pool=pool)
    findings = diagnose(producer_settings(), pools=names, management_url="http://127.0.0.1:1")
    async with aclosing(findings):
        found = [finding.check async for finding in findings]
    assert sorted(found) == sorted([Check.NO_WORKER, Check.MANAGEMENT])


async def test_a_service_goes_away_between_two_checks(
    doctor: Doctor, fleet: Fleet, services: Services, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.submit("hello", pool=pool)
    links: list[AsyncExitStack] = []
    read = Pools.one

    async def read_and_cut(pools: Pools, pool: str) -> PoolStatus:
        status = await read(pools, pool)
        await links.pop().aclose()
        return status

    async def link_to(url: str) -> str:
        links.append(AsyncExitStack())
        return (await links[-1].enter_async_context(Proxy(url))).url

    monkeypatch.setattr(Pools, "one", read_and_cut)
    link = await link_to(services.amqp_url)
    assert await doctor.checks(amqp_url=link) == {Check.RABBITMQ_UNREACHABLE}
    link = await link_to(services.redis_url)
    assert await doctor.checks(redis_url=link) == {Check.REDIS_UNREACHABLE}


# Queues


async def test_the_queue_has_other_arguments_than_these_settings_say(
    doctor: Doctor, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    assert await doctor.checks(queue_max_length=5) == {Check.QUEUE_ARGUMENTS}
    await start_worker()

    async def alive() -> bool:
        return bool((await fleet.pool(pool)).workers)

    await eventually(alive)
    assert await doctor.checks(queue_max_length=5) == {Check.QUEUE_ARGUMENTS, Check.QUEUE_LIMIT}


async def test_queues_are_missing(
    doctor: Doctor, fleet: Fleet, foreign: ForeignClient, store: aioredis.Redis, pool: str
) -> None:
    await foreign.channel.queue_delete(dead_queue(pool))
    assert await doctor.checks() == {Check.DEAD_QUEUE_MISSING}
    await fleet.submit("hello", pool=pool)
    await foreign.channel.queue_delete(job_queue(pool))
    assert await doctor.checks() == {Check.QUEUE_MISSING, Check.NO_WORKER}


async def test_an_unknown_pool_hides_nothing_of_the_others(
    fleet: Fleet, producer_settings: Callable[..., ProducerSettings], doctor: Doctor, pool: str
) -> None:
    await fleet.submit("hello", pool=pool)
    async with aclosing(diagnose(producer_settings(), pools=["nobody-knows-it", pool])) as found:
        checks = [finding.check async for finding in found]
    assert checks == [Check.QUEUE_MISSING, Check.NO_WORKER]


async def test_dead_letters_wait(doctor: Doctor, start_worker: StartWorker, foreign: ForeignClient) -> None:
    await start_worker()
    await foreign.publish(b"no job")

    async def found() -> bool:
        return await doctor.checks() == {Check.DEAD_LETTERS}

    await eventually(found)


# Pools and workers


async def test_a_pool_with_jobs_has_no_worker_or_is_paused(doctor: Doctor, fleet: Fleet, pool: str) -> None:
    await fleet.submit("hello", pool=pool)
    assert await doctor.checks() == {Check.NO_WORKER}
    await fleet.pause_pool(pool)
    assert await doctor.checks() == {Check.NO_WORKER, Check.PAUSED}


@pytest.mark.parametrize(
    ("phase", "severity"), [(RolloutPhase.PAUSED, Severity.WARNING), (RolloutPhase.ABORTING, Severity.ERROR)]
)
async def test_no_gateway_controls_a_rollout(
    doctor: Doctor, pipeline: CommandPipeline, pool: str, phase: RolloutPhase, severity: Severity
) -> None:
    now = pipeline.clock.now()
    rollout = Rollout(pool=pool, to=f"{pool}.new", steps=(100,), interval_s=60, started_at=now, since=now)
    for revision, is_now in enumerate((phase, RolloutPhase.PROMOTED, phase)):
        await change_rollout(pipeline, rollout.in_phase(is_now, now=now), revision=revision)
        found = [(finding.check, finding.severity) for finding in await doctor.findings()]
        # Once it is promoted, nobody has to do anything.
        assert found == ([(Check.ROLLOUT_UNCONTROLLED, severity)] if is_now is phase else [])
    await lead_rollout(pipeline, pool, controller="a gateway", lease_s=PATIENCE_S)
    assert await doctor.checks() == set()


async def test_a_rollout_of_another_version_ends_no_diagnosis(
    doctor: Doctor, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await fleet.submit("hello", pool=pool)
    await store.hset(rollout_key(pool), mapping={"revision": 1, "state": "{}"})
    assert await doctor.checks() == {Check.NO_WORKER, Check.VERSIONS}


async def test_workers_of_a_pool_differ(
    doctor: Doctor, fleet: Fleet, start_worker: StartWorker, pipeline: CommandPipeline, pool: str
) -> None:
    for model in ("model-a", "model-b"):
        await start_worker(SimulatedEngine(model=model, max_running=4, engine_args={"speed": 0}))

    async def differ() -> bool:
        return len({it.model_identity for it in (await fleet.pool(pool)).workers} - {""}) == 2

    await eventually(differ)
    assert await doctor.checks() == {Check.IDENTITIES}
    async with ghost(pipeline, pool, version="0.0.1"):
        assert await doctor.checks() >= {Check.VERSIONS, Check.WORKER_CUT_OFF}


async def test_a_worker_is_cut_off_from_rabbitmq_or_loads_for_ever(
    doctor: Doctor, pipeline: CommandPipeline, pool: str
) -> None:
    async with ghost(pipeline, pool):
        assert await doctor.checks() == {Check.WORKER_CUT_OFF}
    long_ago = pipeline.clock.now() - timedelta(hours=1)
    async with ghost(pipeline, pool, phase=WorkerPhase.LOADING, started_at=long_ago):
        assert await doctor.checks() == {Check.WORKER_CUT_OFF, Check.WORKER_LOADING}


# Jobs


async def test_the_index_has_entries_without_records(
    doctor: Doctor, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await store.zadd(open_key(pool, 4), {new_job_id(): LONG_AGO})
    assert await doctor.checks() == {Check.INDEX_STALE}


async def test_jobs_have_lost_their_requests_or_their_messages(
    doctor: Doctor, fleet: Fleet, foreign: ForeignClient, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await age(store, job)
    assert await doctor.checks() == {Check.NO_WORKER}
    await store.delete(request_key(job.id))
    assert await doctor.checks() == {Check.NO_WORKER, Check.REQUEST_MISSING}
    assert await doctor.checks(keep_requests=False) == {Check.NO_WORKER}
    await foreign.channel.queue_purge(job_queue(pool))
    assert await doctor.checks(keep_requests=False) == {Check.NO_WORKER, Check.MESSAGES_LOST}


async def test_jobs_that_end_while_the_doctor_looks_are_no_finding(
    doctor: Doctor,
    fleet: Fleet,
    foreign: ForeignClient,
    store: aioredis.Redis,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, ends, delivered = [await fleet.submit(f"{n}", pool=pool) for n in range(3)]
    # It has ended, and is about to leave the index.
    now_s, _ = await store.time()
    await store.hset(job_key(ended.id), mapping={"state": "cancelled", "finished_at": now_s * 1000})
    await age(store, ended, ends, delivered)

    async def has_request(jobs: LostMessages, job_id: str) -> bool:
        await fleet.cancel(ends)
        return job_id != ends.id

    async def is_held(jobs: LostMessages, job_id: str) -> bool:
        await store.hset(job_key(job_id), "state", "running")
        return False

    monkeypatch.setattr(LostMessages, "has_request", has_request)
    monkeypatch.setattr(LostMessages, "is_held", is_held)
    await foreign.channel.queue_purge(job_queue(pool))
    assert await doctor.checks() == {Check.NO_WORKER}


async def test_a_worker_that_has_just_died_or_got_a_message_is_no_finding(
    doctor: Doctor,
    fleet: Fleet,
    foreign: ForeignClient,
    store: aioredis.Redis,
    pipeline: CommandPipeline,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await age(store, job)
    await foreign.channel.queue_purge(job_queue(pool))
    await pipeline.learn_time()
    its = heartbeat(pool, pipeline.clock)
    await write_heartbeat(pipeline, its, ttl_s=600)
    sleep = asyncio.sleep

    async def sleep_and_change(delay_s: float) -> None:
        await forget_heartbeat(pipeline, its.worker_id)
        await store.zadd(held_key(pool), {job.id: pipeline.clock.now_ms() + 600_000})
        await sleep(delay_s)

    monkeypatch.setattr(diagnosis, "asyncio", SimpleNamespace(sleep=sleep_and_change))
    assert await doctor.checks() == {Check.NO_WORKER}


async def test_a_quorum_queue_without_a_leader_has_lost_nothing(
    doctor: Doctor, fleet: Fleet, store: aioredis.Redis, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await age(store, job)
    depths = [Depth(0, 0), Depth(0, 1)]
    found: list[set[Check]] = []
    for depth in depths:

        async def ask(*_: Any, depth: Depth = depth, **__: Any) -> Depth:
            return depth

        monkeypatch.setattr(diagnosis, "queue_depth", ask)
        found.append(await doctor.checks(queue_type="quorum"))
    assert [Check.MESSAGES_LOST in checks for checks in found] == [False, True]


async def test_a_running_job_gives_no_sign_of_life(
    doctor: Doctor,
    fleet: Fleet,
    foreign: ForeignClient,
    records: JobRecords,
    store: aioredis.Redis,
    pool: str,
) -> None:
    job = await fleet.submit("hello", pool=pool)
    await stall(records, foreign, job)
    await age(store, job)
    assert await doctor.checks() == {Check.NO_WORKER}
    await store.hset(job_key(job.id), mapping={"lease": LONG_AGO, "lease_ms": 1})
    assert await doctor.checks() == {Check.NO_WORKER, Check.JOB_SILENT}


async def test_a_turn_waits_behind_one_that_has_ended(
    doctor: Doctor, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    session = f"s-{pool}"
    first = await fleet.submit("first", pool=pool, session_id=session)
    second = await fleet.submit("second", pool=pool, session_id=session)
    await age(store, first, second)
    await store.hset(session_key(session), "owner_since", LONG_AGO)
    assert await doctor.checks() == {Check.NO_WORKER}
    await store.delete(job_key(first.id))
    assert await doctor.checks() == {Check.NO_WORKER, Check.INDEX_STALE, Check.LANE_ORPHANED}


async def test_the_command_says_what_to_do_and_fails(
    doctor: Doctor, fleet: Fleet, inferfleet: RunCommand, store: aioredis.Redis, pool: str
) -> None:
    job = await fleet.submit("hello", pool=pool)
    # An autoscaler may be about to start a worker.
    ended = await inferfleet("doctor", "--pool", pool)
    assert (ended.code, ended.out.splitlines()[0]) == (
        0,
        f"warning  {pool}: it has 1 unfinished job and no live worker",
    )
    await age(store, job)
    ended = await inferfleet("doctor", "--pool", pool)
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.splitlines()[0] == f"error  {pool}: it has 1 unfinished job and no live worker"
    assert "start a worker" in ended.out
    as_json = json.loads((await inferfleet("doctor", "--pool", pool, "--json")).out)
    assert [(finding["check"], finding["severity"]) for finding in as_json] == [("no_worker", "error")]
