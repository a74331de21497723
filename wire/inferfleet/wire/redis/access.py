"""Checks at the start, in one round trip, that Redis grants a process all the rights that it needs.

The check tries each command that a client or a worker needs on a key that nobody uses, and in the same way,
by a script or directly. So a missing right is an error that names it, before a job is accepted or taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import redis.asyncio as aioredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import NoScriptError, ResponseError

from inferfleet.schemas.names import (
    POOLS_KEY,
    WORKERS_KEY,
    idempotency_key,
    job_key,
    pool_key,
    reply_key,
    session_key,
    worker_key,
)
from inferfleet.wire.redis import process_scripts, refusals
from inferfleet.wire.redis.clock import RedisClock
from inferfleet.wire.redis.script import SCRIPTS

_JOB: Final = ("HSET", "HGET", "HMGET", "XADD", "SET", "GET", "EXPIRE", "DEL", "XRANGE", "TIME")

_SESSION: Final = (
    *("HSET", "HSETNX", "HGET", "HMGET", "HDEL", "HINCRBY", "HEXISTS", "HKEYS", "RPUSH", "LPOP", "LREM"),
    *("LLEN", "LRANGE", "SET", "GET", "EXISTS", "EXPIRE", "TTL", "DEL", "TIME"),
    *("ZADD", "ZSCORE", "ZREMRANGEBYSCORE"),
)

_POOL: Final = (
    *("HSET", "HGET", "HDEL", "ZADD", "ZREM", "ZCARD", "ZSCORE", "ZREMRANGEBYSCORE", "EXPIRE", "TTL", "TIME"),
)

_LIST: Final = ("ZADD", "ZREMRANGEBYSCORE", "TIME")


@dataclass(frozen=True, slots=True)
class Access:
    """What a process needs: commands, by the pattern of the keys on which it uses them."""

    commands: Mapping[str, tuple[str, ...]]
    reads_blocked: bool
    """Whether the process waits for lines of streams."""
    only_writes: bool
    """Whether the process is useless without writes."""
    waits: bool = False
    """Whether the process waits for replicas."""


def _all(key: str) -> str:
    return key.replace("{*}", "*").replace("{*:*}", "*")


PRODUCER: Final = Access(
    {
        _all(job_key("*")): (*_JOB, "HGETALL", "HSETNX", "HDEL", "XREVRANGE"),
        _all(session_key("*")): (*_SESSION, "HGETALL", "SCAN"),
        _all(pool_key("*")): (*_POOL, "ZRANGE", "ZCOUNT", "HMGET", "HGETALL"),
        _all(idempotency_key("*", "*")): ("SET", "GET", "DEL"),
        _all(reply_key("*")): ("XADD", "XREVRANGE", "EXPIRE"),
        worker_key("*"): ("HGETALL",),
        WORKERS_KEY: ("ZRANGE",),
        POOLS_KEY: (*_LIST, "ZRANGE"),
    },
    reads_blocked=True,
    only_writes=False,
)

WORKER: Final = Access(
    {
        _all(job_key("*")): (*_JOB, "HDEL", "EXISTS", "TTL"),
        _all(session_key("*")): _SESSION,
        _all(pool_key("*")): (*_POOL, "HMGET", "ZRANGE", "ZRANGEBYSCORE", "HINCRBY", "SET"),
        _all(reply_key("*")): ("XADD", "EXPIRE"),
        worker_key("*"): ("HSET", "PEXPIRE", "DEL"),
        WORKERS_KEY: (*_LIST, "ZREM"),
        POOLS_KEY: _LIST,
    },
    reads_blocked=False,
    only_writes=True,
)

INDEXES: Final = ("VADD", "VCARD", "VREM", "VSETATTR", "VSIM")
"""What a client needs besides if it uses indexes of documents. Redis has these commands from version 8 on, so
the check at the start does not try them."""


async def check_access(
    client: aioredis.Redis,
    access: Access,
    *,
    clock: RedisClock,
    where: str,
    serves: Callable[[str], bool] | None = None,
) -> None:
    """Try everything that a process needs, and learn Redis' time.

    If Redis temporarily refuses only writes, a process that also reads passes the check. For a node of a
    cluster, ``serves`` says which keys are there.

    Raises:
        ServiceRefusedError: Redis refuses something; the message names commands and keys.
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    name = f"access-{os.urandom(8).hex()}"
    while serves is not None and not serves(name):
        name = f"access-{os.urandom(8).hex()}"
    keys = {pattern: pattern.replace("*", f"{{{name}}}") for pattern in access.commands}
    if serves is not None:
        keys = {pattern: key for pattern, key in keys.items() if serves(key)}
    async with client.pipeline(transaction=False) as pipeline:
        asked = time.monotonic()
        pipeline.execute_command("TIME")
        pipeline.execute_command("SCRIPT", "LOAD", SCRIPTS["access"].text)
        for pattern, key in keys.items():
            pipeline.execute_command(*process_scripts.access(key, *access.commands[pattern]))
        # Two keys in different slots: every node of a cluster refuses such a command.
        ends = "abc" if serves is None else ""
        pipeline.execute_command("EXISTS", job_key(name), *(job_key(name + end) for end in ends))
        if access.reads_blocked:
            pipeline.execute_command("XREAD", "COUNT", 1, "STREAMS", job_key(name), "0")
        if access.waits:
            pipeline.execute_command("WAIT", 0, 1)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
    answered = time.monotonic()
    time_now, loaded, *tried = answers
    if not isinstance(time_now, ResponseError):
        clock.learn(time_now, asked=asked, answered=answered)
    problems = [*_direct("TIME", time_now), *_direct("SCRIPT LOAD", loaded)]
    for pattern, answer in zip(keys, tried, strict=False):
        problems += _by_script(pattern, answer)
    last = ("EXISTS", *(["XREAD"] if access.reads_blocked else ()), *(["WAIT"] if access.waits else ()))
    for command, answer in zip(last, tried[len(keys) :], strict=True):
        problems += _direct(command, answer)
    _raise_worst(problems, writes_matter=access.only_writes, where=where)


_parse_error = cast("Callable[[str], ResponseError]", DefaultParser.parse_error)


@dataclass(frozen=True, slots=True)
class _Problem:
    """What Redis refuses, on which keys if that matters, and its own message."""

    command: str
    error: ResponseError
    pattern: str = ""


def _direct(command: str, answer: Any) -> list[_Problem]:
    return [_Problem(command, answer)] if isinstance(answer, ResponseError) else []


def _by_script(pattern: str, answer: Any) -> list[_Problem]:
    if isinstance(answer, NoScriptError):
        # Redis refused to load the script, which is reported already.
        return []
    if isinstance(answer, ResponseError):
        return [_Problem("EVALSHA", answer, pattern if "key" in str(answer) else "")]
    texts = [text.decode() for text in answer]
    return [
        _Problem(command, _parse_error(text), pattern)
        for command, text in zip(texts[::2], texts[1::2], strict=True)
    ]


def _raise_worst(problems: list[_Problem], *, writes_matter: bool, where: str) -> None:
    """Raise lasting problems before passing ones, with all commands that they concern."""
    if not writes_matter:
        problems = [problem for problem in problems if not refusals.only_writes(problem.error)]
    problems = [problem for problem in problems if refusals.lasts(problem.error)] or problems
    if not problems:
        return
    keys: dict[str, list[str]] = {}
    for problem in problems:
        keys.setdefault(problem.command, []).extend([problem.pattern] if problem.pattern else [])
    about = ", ".join(f"{command} on {' '.join(on)}" if on else command for command, on in keys.items())
    error = problems[0].error
    raise refusals.refused(error, where=where, what=about) from error
