"""Runs all checks, in order: what a service does not tell, the checks behind it cannot know."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from inferfleet.producer.background import background
from inferfleet.producer.doctor.finding import Check, Finding, error, warning
from inferfleet.producer.doctor.fleet import (
    JobChecks,
    pool_findings,
    queue_findings,
    rollout_findings,
)
from inferfleet.producer.doctor.services import policy_findings, rabbitmq_findings, redis_findings
from inferfleet.producer.job_listing import JobListing
from inferfleet.producer.pools import Pools
from inferfleet.schemas.errors import (
    ConfigurationError,
    InferfleetError,
    ServiceRefusedError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.names import job_queue
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.settings import ProducerSettings, misspelt_variables
from inferfleet.wire.rabbitmq.connection import Connection, open_amqp
from inferfleet.wire.rabbitmq.errors import BrokerUnreachableError
from inferfleet.wire.rabbitmq.inspection import queue_depth
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel, Depth
from inferfleet.wire.redis.access import PRODUCER
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import check_redis, closing_redis, command_pipeline, redis_client
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.records import JobRecords
from inferfleet.wire.redis.rollouts import read_rollout
from inferfleet.wire.redis.session_lanes import SessionLanes

CONFIRM_S = 5.0
"""How long RabbitMQ may take to confirm a message for nobody."""

PASSING = {Check.WORKER_CUT_OFF, Check.MESSAGES_LOST, Check.ROLLOUT_UNCONTROLLED}
"""What may be so for a moment in a healthy fleet, and counts only if it is so for longer."""

LOOK_AGAIN_S = 10.0
"""By then, with the default settings, a dead worker is off the health map, and each live one has reported the
messages that it got before."""


async def diagnose(
    settings: ProducerSettings, *, pools: Sequence[str] | None = None, management_url: str | None = None
) -> AsyncGenerator[Finding]:
    """Yield what is wrong, as it is seen from this machine with these settings. Changes nothing.

    Checks these ``pools``, or all that are known. RabbitMQ shows policies only by its HTTP API, so they are
    checked only with a ``management_url``.
    """
    for misspelt in misspelt_variables(os.environ):
        yield warning(Check.SETTING_UNKNOWN, "this environment", misspelt, "correct or unset it")
    async with AsyncExitStack() as stack:
        connection: Connection | None = None
        channel = ConfirmChannel(
            settings.amqp_url,
            connect_timeout_s=settings.connect_timeout_s,
            confirm_timeout_s=CONFIRM_S,
            name=f"{settings.client_id} (doctor)",
        )
        stack.push_async_callback(channel.aclose)
        try:
            connection = await stack.enter_async_context(
                open_amqp(
                    settings.amqp_url,
                    timeout_s=settings.connect_timeout_s,
                    name=f"{settings.client_id} (doctor)",
                )
            )
        except (ServiceUnreachableError, ConfigurationError) as problem:
            yield _unreachable(Check.RABBITMQ_UNREACHABLE, "RabbitMQ", problem)
        else:
            async with aclosing(rabbitmq_findings(connection, channel, settings)) as findings:
                async for finding in findings:
                    yield finding
        clock = RedisClock()
        try:
            client = await stack.enter_async_context(closing_redis(redis_client(settings.redis_url)))
            await check_redis(client, settings.redis_url, access=PRODUCER, clock=clock)
        except (ServiceUnreachableError, ConfigurationError) as problem:
            yield _unreachable(Check.REDIS_UNREACHABLE, "Redis", problem)
            return
        except ServiceRefusedError as problem:
            yield error(
                Check.REDIS_RIGHTS,
                "Redis",
                str(problem),
                "grant the rights in docs/reference/redis.md, or correct INFERFLEET_REDIS_URL",
            )
            return
        async with aclosing(redis_findings(client, clock, settings)) as findings:
            async for finding in findings:
                yield finding
        pipeline = command_pipeline(client, patience_s=0.0, clock=clock)
        await stack.enter_async_context(background(pipeline.run()))
        try:
            async with aclosing(
                _fleet(settings, pipeline, connection, pools=pools, management_url=management_url)
            ) as findings:
                async for finding in findings:
                    yield finding
        except BrokerUnreachableError as problem:
            yield _unreachable(Check.RABBITMQ_UNREACHABLE, "RabbitMQ", problem)
        except ServiceUnreachableError as problem:
            yield _unreachable(Check.REDIS_UNREACHABLE, "Redis", problem)


async def _fleet(
    settings: ProducerSettings,
    pipeline: CommandPipeline,
    connection: Connection | None,
    *,
    pools: Sequence[str] | None,
    management_url: str | None,
) -> AsyncGenerator[Finding]:
    records = JobRecords(
        pipeline=pipeline, result_ttl_s=settings.result_ttl_s, queued_ttl_s=settings.queued_ttl_s
    )
    lanes = SessionLanes(pipeline=pipeline, settings=settings)
    listing = JobListing(pipeline, records)

    async def depth(queue: str) -> Depth | None:
        return None if connection is None else await queue_depth(connection, queue, url=settings.amqp_url)

    async def waiting(queue: str) -> int | None:
        found = await depth(queue)
        return None if found is None else found.ready

    known = Pools(pipeline=pipeline, listing=listing, waiting=waiting)
    # What is wrong with RabbitMQ's HTTP API is so for all pools, and may take a timeout to find.
    unchecked: list[Finding] = []

    async def look(name: str) -> AsyncGenerator[Finding]:
        try:
            pool = await known.one(name)
        except UnknownPoolError as problem:
            if connection is not None:
                yield error(
                    Check.QUEUE_MISSING, "RabbitMQ", str(problem), "start a worker for it, or declare it"
                )
            return
        for finding in pool_findings(pool, settings, pipeline.clock.now()):
            yield finding
        try:
            kept = await read_rollout(pipeline, name)
        except (ServiceRefusedError, ServiceUnreachableError):
            raise
        except InferfleetError as problem:
            yield warning(Check.VERSIONS, name, str(problem), "finish the upgrade")
        else:
            for finding in rollout_findings(kept):
                yield finding
        if connection is not None:
            async with aclosing(queue_findings(connection, pool, settings)) as findings:
                async for finding in findings:
                    yield finding
        if management_url is not None and not unchecked:
            async for finding in _policies(settings, pool, management_url):
                if finding.check is Check.MANAGEMENT:
                    unchecked.append(finding)
                else:
                    yield finding
        async with aclosing(JobChecks(pipeline, lanes, pool, depth=depth).findings(settings)) as findings:
            async for finding in findings:
                yield finding

    doubtful: dict[str, set[tuple[Check, str]]] = {}
    for name in pools if pools is not None else [pool.pool for pool in await known.all()]:
        findings = [finding async for finding in look(name)]
        if any(finding.check in PASSING for finding in findings):
            doubtful[name] = {(finding.check, finding.subject) for finding in findings}
        else:
            for finding in findings:
                yield finding
    if doubtful:
        await asyncio.sleep(LOOK_AGAIN_S)
    for name, seen in doubtful.items():
        for finding in [finding async for finding in look(name)]:
            if finding.check not in PASSING or (finding.check, finding.subject) in seen:
                yield finding
    for finding in unchecked:
        yield finding


async def _policies(
    settings: ProducerSettings, pool: PoolStatus, management_url: str
) -> AsyncGenerator[Finding]:
    if pool.ready is None:
        return
    try:
        # aiohttp, which only the worker's extra installs.
        from inferfleet.wire.rabbitmq.management import ManagementApi
    except ImportError as problem:
        yield warning(
            Check.MANAGEMENT,
            "this environment",
            f"RabbitMQ's policies cannot be checked: {problem}",
            "install inferfleet[worker], or unset INFERFLEET_MANAGEMENT_URL",
        )
        return
    api = ManagementApi(management_url, amqp_url=settings.amqp_url, timeout_s=settings.connect_timeout_s)
    try:
        queue = await api.queue(job_queue(pool.pool))
    except (ServiceUnreachableError, ConfigurationError) as problem:
        yield _unreachable(Check.MANAGEMENT, "RabbitMQ's HTTP API", problem)
        return
    for finding in policy_findings(pool.pool, queue):
        yield finding


def _unreachable(check: Check, service: str, problem: Exception) -> Finding:
    return error(check, service, str(problem), "correct the address, or start the service")
