"""What RabbitMQ refuses: its own reason for the one that caused it, and no harm to the others."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiormq.exceptions import ConnectionResourceError
from tests.conftest import Control
from tests.integration.conftest import Connect, StartWorker, chat
from tests.matrix import Cell
from tests.patience import PATIENCE_S
from yarl import URL

from inferfleet.agents import AgentRuns
from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.producer.publisher import Publisher
from inferfleet.schemas import Job, JobState
from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.rabbitmq.confirms import ChannelEndedError, Confirms, NackedError

SMALL, LARGEST = 10, 100_000

SUPPORT = Path(__file__).parents[2] / "docs" / "reference" / "support.md"


async def outcomes(fleet: Fleet, jobs: list[Job]) -> Counter[str]:
    """Submit all at once, and count what they end as; a job that was refused has no record."""

    async def submit(job: Job) -> str:
        try:
            await fleet.submit(job)
        except ServiceRefusedError as error:
            with pytest.raises(JobNotFoundError):
                await fleet.get(job)
            return str(error)
        return "accepted"

    return Counter(await asyncio.gather(*map(submit, jobs)))


@pytest.fixture
async def small_messages(control: Control) -> AsyncIterator[None]:
    """The broker takes no messages of more than ``LARGEST`` bytes."""
    change = (
        "{{ok, N}} = application:get_env(rabbit, max_message_size), "
        "application:set_env(rabbit, max_message_size, {0}), "
        "persistent_term:put(max_message_size, {0}), N."  # where RabbitMQ 4 looks
    )
    before = await control("eval", change.format(LARGEST))
    yield
    await control("eval", change.format(before.strip()))


@pytest.mark.matrix
@pytest.mark.usefixtures("small_messages")
async def test_of_many_jobs_only_those_that_are_too_large_are_refused(fleet: Fleet, pool: str) -> None:
    sizes = [SMALL] * 100 + [200_000] + [SMALL] * 100 + [300_000, 400_000, 150_000] + [SMALL] * 100
    found = await outcomes(fleet, [Job(pool=pool, body=chat("x" * size)) for size in sizes])
    assert found.pop("accepted") == 300
    assert len(found) == 4
    for reason in found:
        assert "PRECONDITION_FAILED - message size" in reason
        assert "max_message_size" in reason


@pytest.mark.matrix
async def test_a_mismatching_declaration_does_not_disturb_who_submits(
    connect: Connect, fleet: Fleet, pool: str
) -> None:
    async with connect(queue_max_length=5) as other:
        await other.submit("hello", pool=pool)
        *accepted, refused = await asyncio.gather(
            *(other.submit("hello", pool=pool) for _ in range(200)),
            other.declare_pool(pool),
            return_exceptions=True,
        )
    assert isinstance(refused, ConfigurationError)
    assert job_queue(pool) in str(refused)
    assert all(isinstance(job, Job) for job in accepted), Counter(map(repr, accepted))


# Rights and limits, on a virtual host and with a user of the test's own


@dataclass(frozen=True)
class Tenant:
    """A virtual host and a user that owns it."""

    name: str
    url: str
    control: Control

    async def permit(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        await self.control("set_permissions", "-p", self.name, self.name, configure, write, read)


@pytest.fixture
async def tenant(services: Services, control: Control, pool: str) -> AsyncIterator[Tenant]:
    await control("add_vhost", pool)
    await control("add_user", pool, "secret")
    url = URL(services.amqp_url).with_user(pool).with_password("secret").with_path(f"/{pool}")
    tenant = Tenant(name=pool, url=str(url), control=control)
    await tenant.permit()
    yield tenant
    await control("delete_user", pool)
    await control("delete_vhost", pool)


async def test_a_missing_permission_to_write_is_told_as_such(
    connect: Connect, tenant: Tenant, pool: str
) -> None:
    async with connect(amqp_url=tenant.url) as fleet:
        await fleet.declare_pool(pool)
    await tenant.permit(write="nothing")
    async with connect(amqp_url=tenant.url, patience_s=30) as fleet:
        found = await outcomes(fleet, [Job(pool=pool, body=chat()) for _ in range(20)])
    assert "accepted" not in found
    for reason in found:
        assert "ACCESS_REFUSED" in reason
        assert "'inferfleet.jobs'" in reason
        assert "permission" in reason


async def test_a_missing_permission_to_configure_is_told_as_such(
    connect: Connect, tenant: Tenant, pool: str
) -> None:
    await tenant.permit(configure=r"^inferfleet\.(jobs|dead|control)$")
    async with connect(amqp_url=tenant.url, patience_s=30) as fleet:
        with pytest.raises(ServiceRefusedError, match=r"ACCESS_REFUSED.*permission"):
            await fleet.declare_pool(pool)
        await tenant.permit(configure="nothing")
        with pytest.raises(ServiceRefusedError, match=r"ACCESS_REFUSED.*permission"):
            await fleet.submit("hello", pool=pool)


async def test_the_permissions_on_the_page_are_enough_for_all_that_a_fleet_does(
    connect: Connect, tenant: Tenant, start_worker: StartWorker, pool: str
) -> None:
    (row,) = re.findall(r"^rabbitmqctl set_permissions \S+ (.*)$", SUPPORT.read_text(), re.MULTILINE)
    await tenant.permit(*shlex.split(row))
    worker = await start_worker(amqp_url=tenant.url, retry_base_s=0.01, warm_wait_s=1.0)
    async with connect(amqp_url=tenant.url, patience_s=PATIENCE_S) as fleet:
        await fleet.declare_pool(pool)
        session = fleet.session(pool)
        failing = Job(pool=pool, body=chat(simulated={"fail": "engine_error"}), max_attempts=2)
        jobs = [
            await fleet.submit("now", pool=pool),
            await fleet.submit("later", pool=pool, delay_s=1),
            await session.send("one", pool=pool),
            await session.send("two", pool=pool),
            await fleet.submit("urgent", pool=pool, priority="urgent"),
        ]
        found = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
        assert {result.state for result in found} == {JobState.SUCCEEDED}, found
        failed = await fleet.wait(await fleet.submit(failing), timeout_s=PATIENCE_S)
        assert failed.state is JobState.FAILED
        (letter,) = await fleet.dead_letters.read(pool)
        assert letter.message_id == failing.id
        assert await fleet.dead_letters.purge(pool, everything=True) == 1
        run_id = await AgentRuns(fleet).start("clerk", "go", queue=pool)
        assert [run.id for run in await AgentRuns(fleet).list(pool)] == [run_id]
        (alive,) = [each.worker_id for each in await fleet.workers() if each.pool == pool]
        await fleet.drain(alive)
    await worker.running


@pytest.mark.parametrize(
    "lacking", [{"configure": "nothing"}, {"read": r"^inferfleet\.(jobs|dead|control.*)$"}], ids=str
)
async def test_a_worker_without_permission_says_so_and_ends(
    tenant: Tenant, start_worker: StartWorker, pool: str, lacking: dict[str, str]
) -> None:
    await tenant.permit(**lacking)
    worker = await start_worker(amqp_url=tenant.url)
    with pytest.raises(ServiceRefusedError, match="ACCESS_REFUSED"):
        await worker.running


async def test_the_limits_of_a_user_and_a_virtual_host_are_told_as_such(
    connect: Connect, tenant: Tenant, pool: str
) -> None:
    await tenant.control("set_vhost_limits", "-p", pool, '{"max-queues": 0}')
    async with connect(amqp_url=tenant.url) as fleet:
        with pytest.raises(ServiceRefusedError, match=r"PRECONDITION_FAILED.*limit"):
            await fleet.declare_pool(pool)
        await tenant.control("set_vhost_limits", "-p", pool, '{"max-queues": 2, "max-connections": 1}')
        await fleet.declare_pool(pool)
        async with connect(amqp_url=tenant.url) as second:
            with pytest.raises(ServiceUnreachableError, match=r"connection limit"):
                await second.submit("hello", pool=pool)
        await fleet.submit("hello", pool=pool)


async def test_a_limit_on_channels_is_told_as_such(connect: Connect, tenant: Tenant, pool: str) -> None:
    await tenant.control("set_user_limits", pool, '{"max-channels": 0}')
    async with connect(amqp_url=tenant.url) as fleet:
        with pytest.raises(ServiceUnreachableError, match=r"limit"):
            await fleet.submit("hello", pool=pool)


async def test_a_virtual_host_that_is_gone_is_told_as_such(
    connect: Connect, tenant: Tenant, pool: str
) -> None:
    async with connect(amqp_url=tenant.url) as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit("hello", pool=pool)
        await tenant.control("delete_vhost", pool)
        with pytest.raises(ServiceUnreachableError, match=f"vhost {pool} not found"):
            await fleet.submit("hello", pool=pool)
        await tenant.control("add_vhost", pool)


@pytest.mark.matrix
async def test_everything_works_where_queues_are_quorum_queues_by_default(
    connect: Connect, services: Services, control: Control, start_worker: StartWorker, pool: str
) -> None:
    address = URL(services.amqp_url)
    await control("add_vhost", pool, "--default-queue-type", "quorum")
    await control("set_permissions", "-p", pool, str(address.user), ".*", ".*", ".*")
    url = str(address.with_path(f"/{pool}"))
    worker = await start_worker(amqp_url=url)
    async with connect(amqp_url=url, patience_s=30) as fleet:
        await fleet.declare_pool(pool)
        job = await fleet.submit("hello", pool=pool)
        (await fleet.wait(job, timeout_s=PATIENCE_S)).raise_for_state()
    await worker.stop()


# Nacks


@pytest.fixture
def nacks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the jobs that were nacked."""
    nacked: list[object] = []
    publish_nacked = Publisher._publish_nacked

    async def counting(self: Publisher, job: Job, publish: Any, **how: bool) -> None:
        nacked.append(job)
        await publish_nacked(self, job, publish, **how)

    monkeypatch.setattr(Publisher, "_publish_nacked", counting)
    return lambda: len(nacked)


@pytest.mark.matrix
async def test_a_queue_whose_process_dies_is_not_full_and_takes_the_job_a_moment_later(
    fleet: Fleet, control: Control, nacks: Callable[[], int], pool: str, cell: Cell | None
) -> None:
    quorum = ServiceSettings().queue_type is QueueType.QUORUM
    found = "whereis(element(1, amqqueue:get_pid(Q)))" if quorum else "amqqueue:get_pid(Q)"
    # Killed as soon as it has something to read, which it does not while it is suspended.
    await control(
        "eval",
        f"""{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{job_queue(pool)}">>)),
        P = {found}, erlang:spawn(fun() -> erlang:suspend_process(P), (fun Wait() ->
            case erlang:process_info(P, message_queue_len) of
                {{_, 0}} -> timer:sleep(1), Wait();
                _ -> exit(P, kill)
            end end)() end), ok.""",
    )
    jobs = await asyncio.gather(*(fleet.submit("hello", pool=pool) for _ in range(20)))
    assert len({job.id for job in jobs}) == 20
    # The client side of a quorum queue, in RabbitMQ, mostly asks again by itself.
    assert nacks() or quorum


Fates = Callable[..., Callable[[], int]]


@pytest.fixture
def publishes_fare(monkeypatch: pytest.MonkeyPatch) -> Fates:
    """Let the next publishes fare as on a queue whose process dies; returns how many did.

    ``taken``: the broker takes the message, and ends the connection with an error. ``lost``: it takes it, and
    nobody hears of that. ``gone``: it does not answer. ``no file``: the file with its URL is missing.
    """
    publish = Confirms.publish

    def publishes_fare(*fates: str) -> Callable[[], int]:
        left = list(fates)

        async def fare(self: Confirms, *arguments: Any, **keywords: Any) -> None:
            fate = left.pop(0) if left else "published"
            if fate in {"taken", "lost", "published"}:
                await publish(self, *arguments, **keywords)
            died = ConnectionResourceError("RESOURCE_ERROR - failed to deliver message")
            match fate:
                case "taken":
                    raise ChannelEndedError(died, refusal=died, sent=True)
                case "lost":
                    raise TimeoutError
                case "nacked":
                    raise NackedError
                case "gone":
                    raise ServiceUnreachableError("RabbitMQ does not answer")
                case "no file":
                    raise ConfigurationError("cannot read /secrets/amqp_url")
                case _:
                    pass

        monkeypatch.setattr(Confirms, "publish", fare)
        return lambda: len(fates) - len(left)

    return publishes_fare


async def test_a_job_that_is_nacked_behind_a_broken_connection_is_published_again(
    fleet: Fleet, start_worker: StartWorker, publishes_fare: Fates, pool: str
) -> None:
    fared = publishes_fare("taken", "nacked")
    job = await fleet.submit("hello", pool=pool)
    assert fared() == 2
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_a_full_queue_behind_a_broken_connection_may_have_the_job(
    fleet: Fleet, control: Control, publishes_fare: Fates, pool: str
) -> None:
    # Full with the copy that the broker took before the connection broke.
    await control(
        "set_policy", pool, f"^{job_queue(pool)}$", '{"max-length": 1, "overflow": "reject-publish"}'
    )
    publishes_fare("taken", "nacked")
    try:
        with pytest.raises(PublishUnconfirmedError, match="is full with 1 job"):
            await fleet.submit("hello", pool=pool)
    finally:
        await control("clear_policy", pool)


@pytest.mark.parametrize(
    "fates", [("taken", "nacked", "gone"), ("nacked", "gone"), ("nacked", "no file")], ids=",".join
)
async def test_a_job_that_was_nacked_and_meets_no_broker_then_is_not_taken_back(
    fleet: Fleet, start_worker: StartWorker, publishes_fare: Fates, pool: str, fates: tuple[str, ...]
) -> None:
    job = Job(pool=pool, body=chat("hello"))
    publishes_fare(*fates)
    with pytest.raises(PublishUnconfirmedError, match="nacked it before"):
        await fleet.submit(job)
    assert (await fleet.get(job)).state is JobState.QUEUED
    await fleet.submit(job)
    await start_worker()
    assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_a_job_that_was_not_confirmed_is_not_taken_back_because_the_next_try_finds_no_url(
    connect: Connect, start_worker: StartWorker, publishes_fare: Fates, pool: str
) -> None:
    async with connect(patience_s=10) as fleet:
        await fleet.declare_pool(pool)
        job = Job(pool=pool, body=chat("hello"))
        fared = publishes_fare("lost", "no file", "no file")
        await fleet.submit(job)
        assert fared() == 3
        await start_worker()
        assert (await fleet.wait(job, timeout_s=PATIENCE_S)).state is JobState.SUCCEEDED


async def test_a_command_that_is_nacked_is_unconfirmed(
    fleet: Fleet, start_worker: StartWorker, publishes_fare: Fates, pool: str
) -> None:
    worker = await start_worker(worker_id=f"{pool}-w")
    await fleet.wait(await fleet.submit("hello", pool=pool), timeout_s=PATIENCE_S)
    fared = publishes_fare("nacked")
    # Repeated until the worker drains.
    await fleet.drain(f"{pool}-w", timeout_s=PATIENCE_S)
    assert fared() == 1
    await asyncio.wait_for(worker.running, PATIENCE_S)


async def attempt(fleet: Fleet, pool: str) -> InferfleetError | None:
    try:
        await fleet.submit("hello", pool=pool)
    except InferfleetError as error:
        return error
    return None


@pytest.mark.matrix
async def test_a_queue_that_a_policy_limits_is_full(fleet: Fleet, control: Control, pool: str) -> None:
    await control(
        "set_policy", pool, f"^{job_queue(pool)}$", '{"max-length": 2, "overflow": "reject-publish"}'
    )
    try:
        # One by one: a quorum queue takes a few more.
        outcomes = [await attempt(fleet, pool) for _ in range(10)]
        assert outcomes[:2] == [None, None]
        assert isinstance(outcomes[-1], QueueFullError)
        assert "policy" in str(outcomes[-1])
    finally:
        await control("clear_policy", pool)
