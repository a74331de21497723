"""Checks of RabbitMQ and Redis."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping

from inferfleet.producer.doctor.finding import Check, Finding, error, warning
from inferfleet.schemas.errors import (
    PublishUnconfirmedError,
    ServiceRefusedError,
    ServiceUnreachableError,
)
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.rabbitmq.connection import Connection
from inferfleet.wire.rabbitmq.inspection import broker_product, broker_version, check_rights
from inferfleet.wire.rabbitmq.management_answers import QueueAnswer
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.connection import Client, servers
from inferfleet.wire.redis.eviction import KEEPS_EVERYTHING
from inferfleet.wire.redis.server_info import ServerInfo, read_server_info

OLDEST_REDIS = (7, 0)
OLDEST_RABBITMQ = (3, 10)

PATCHED: Mapping[str, Mapping[tuple[int, ...], int]] = {
    "Redis": {(7, 4): 9, (8, 2): 6, (8, 4): 3, (8, 6): 3},
    "Valkey": {(8, 1): 7, (9, 0): 4},
}
"""The first releases with the fixes of May 2026: CVE-2026-23479, CVE-2026-25243 and CVE-2026-23631 let
somebody who may use Redis run code in it.

Only releases that their makers patch. What a distribution patches keeps its number, so 7.0 is not here.
Sources: https://github.com/redis/docs/pull/3292, https://github.com/valkey-io/valkey/releases
"""

MAX_SKEW_S = 2.0
"""How far this machine's clock may be from Redis': about what a person would not notice."""

FULL = 0.9
"""From which share of its memory on Redis is nearly full."""

DROPPING = ("message-ttl", "expires", "delivery-limit", "max-in-memory-length")
"""Keys of policies that let a queue drop jobs."""

LONG_S = 30 * 60
"""RabbitMQ's own ``consumer_timeout``. A shorter one interrupts jobs that run for long."""


async def redis_findings(
    client: Client, clock: RedisClock, settings: ServiceSettings
) -> AsyncGenerator[Finding]:
    """Check each server of a Redis that answers and grants us INFO."""
    own_s = time.time()  # noqa: TID251 - whether this clock is right is the question
    skew_s = own_s - clock.now().timestamp()
    if abs(skew_s) > MAX_SKEW_S:
        yield warning(
            Check.CLOCK,
            "this machine",
            f"its clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} Redis'",
            "synchronize the clocks (NTP); until then --expires and the times in logs are off by that",
        )
    for server in servers(client):
        try:
            info = await read_server_info(server)
        except ServiceUnreachableError as problem:
            yield warning(
                Check.REDIS_RIGHTS,
                "Redis",
                f"its version, memory and persistence are unknown: {problem}",
                "grant +info to this user",
            )
            continue
        for finding in server_findings(info, settings):
            yield finding


def server_findings(info: ServerInfo, settings: ServiceSettings) -> Iterator[Finding]:
    """Check what one Redis server says of itself."""
    if (number := _version(info.version)) and number < OLDEST_REDIS:
        yield error(
            Check.REDIS_VERSION,
            "Redis",
            f"it is version {info.version}",
            "use 7.0 or later: older ones are not tested",
        )
    numbers = tuple(map(int, re.findall(r"\d+", info.product_version)[:3]))
    patch = PATCHED[info.product].get(numbers[:2])
    if patch is not None and numbers[2:] < (patch,):
        yield warning(
            Check.REDIS_VERSION,
            "Redis",
            f"{info.product} {info.product_version} has known vulnerabilities, such as CVE-2026-23479",
            f"use {numbers[0]}.{numbers[1]}.{patch} or later, unless your distribution has patched this one",
        )
    if info.maxmemory_bytes:
        if info.eviction_policy != KEEPS_EVERYTHING:
            yield (warning if settings.allow_eviction else error)(
                Check.REDIS_EVICTION,
                "Redis",
                f"maxmemory-policy is {info.eviction_policy}: when memory is full, it throws jobs away",
                "set maxmemory-policy to noeviction",
            )
        if info.used_memory_bytes > FULL * info.maxmemory_bytes:
            yield error(
                Check.REDIS_MEMORY,
                "Redis",
                f"{info.used_memory_bytes:,} of {info.maxmemory_bytes:,} bytes are used; when it is full, it "
                "refuses jobs and results",
                "raise maxmemory, or lower INFERFLEET_RESULT_TTL_S",
            )
    if not info.append_only:
        yield warning(
            Check.REDIS_PERSISTENCE,
            "Redis",
            "it keeps no append-only file: a restart loses results and sessions",
            "set appendonly to yes",
        )
    for name in info.write_errors:
        yield error(
            Check.REDIS_PERSISTENCE,
            "Redis",
            f"it could not write to its disk ({name})",
            "look at Redis' log, and at the space on its disk",
        )
    if info.replicas < settings.redis_wait_replicas:
        yield error(
            Check.REDIS_REPLICAS,
            "Redis",
            f"it has {info.replicas} replicas, and INFERFLEET_REDIS_WAIT_REPLICAS is "
            f"{settings.redis_wait_replicas}: no job is accepted",
            "start the replicas, or lower the setting",
        )


async def rabbitmq_findings(
    connection: Connection, channel: ConfirmChannel, settings: ServiceSettings
) -> AsyncGenerator[Finding]:
    """Check a broker that has let us in."""
    product, version = broker_product(connection), broker_version(connection)
    if product != "RabbitMQ":
        yield warning(
            Check.RABBITMQ_VERSION,
            "RabbitMQ",
            f"it is {product} {version}".rstrip(),
            "use RabbitMQ 3.10 or later, unless this is for development: no other broker is supported",
        )
    elif (number := _version(version)) and number < OLDEST_RABBITMQ:
        yield error(
            Check.RABBITMQ_VERSION,
            "RabbitMQ",
            f"it is version {version}",
            "use 3.10 or later: older ones are not tested",
        )
    try:
        await check_rights(connection, channel, url=settings.amqp_url)
    except ServiceRefusedError as problem:
        yield error(
            Check.RABBITMQ_RIGHTS,
            "RabbitMQ",
            str(problem),
            r"grant configure, write and read on ^inferfleet\. to this user",
        )
    except (PublishUnconfirmedError, ServiceUnreachableError) as problem:
        yield error(
            Check.RABBITMQ_BLOCKED,
            "RabbitMQ",
            f"it accepts no messages: {problem}",
            "look at its alarms (`rabbitmq-diagnostics alarms`): free memory or disk",
        )


def policy_findings(pool: str, queue: QueueAnswer) -> Iterator[Finding]:
    """Check the policy and the arguments of a queue, as RabbitMQ's HTTP API shows it."""
    policy = queue.effective_policy_definition
    dropping = [key for key in DROPPING if key in policy and policy[key] != -1]
    if any(key in policy for key in ("max-length", "max-length-bytes")):
        dropping += (
            [] if policy.get("overflow") == "reject-publish" else ["max-length without reject-publish"]
        )
    if dropping:
        yield error(
            Check.RABBITMQ_POLICY,
            pool,
            f"the policy {queue.policy!r} lets its queue drop jobs: {', '.join(dropping)}",
            "let no such policy apply to inferfleet.*",
        )
    timeout_ms = policy.get("consumer-timeout", queue.arguments.get("x-consumer-timeout"))
    if isinstance(timeout_ms, int) and timeout_ms < LONG_S * 1000:
        yield warning(
            Check.RABBITMQ_POLICY,
            pool,
            f"consumer-timeout is {timeout_ms // 1000} s: RabbitMQ disconnects a worker whose job runs "
            "for longer",
            "set it to longer than the longest job and INFERFLEET_RETRY_CAP_S",
        )


def _version(text: str) -> tuple[int, ...]:
    """Read major and minor version; empty if there are none."""
    numbers = re.match(r"(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else ()
