"""Makes two runs of a schedule equal: fixes clocks, random numbers, names, hashes.

This is the complete list. It applies to the whole process, which does nothing else.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, tzinfo
from typing import Any

import circuitbreaker  # pyright: ignore[reportMissingTypeStubs]
import redis.utils
import uuid_utils
from aiormq.abc import TaskWrapper

import inferfleet.producer.publisher
import inferfleet.schemas.job
import inferfleet.worker.heartbeat
import inferfleet.worker.intake
import inferfleet.worker.topology
import inferfleet.worker.urgent
import inferfleet.worker.worker
from inferfleet.local.simulation.loop import hash_by_number
from inferfleet.worker.job_run import JobRun

EPOCH_S = 1_800_000_000.0
"""The time at which every run begins."""

INTAKE_INTERVAL_S = 30.0
"""How rarely workers check their engine's load: it never changes here, and each check costs a step."""

LOOK_INTERVAL_S = 60.0
"""How rarely full workers look for urgent jobs: no scenario has any, and each look costs three steps."""

WATCH_INTERVAL_S = 300.0
"""How rarely workers declare their queues again: the broker does not lose them, and this costs 170 steps."""


NACK_PAUSE_S = 4.0
"""How rarely producers publish a job again that a full queue has nacked, at last: a try costs 110 steps."""


class _SeededRandom(random.Random):
    """A generator that has a seed even if none is given."""

    def __init__(self, seed: Any = 0) -> None:
        super().__init__(seed)


def make_deterministic(now: Callable[[], float]) -> None:
    """Replace what differs between runs. ``now`` is the virtual time in seconds since the start."""
    numbers = itertools.count(1)
    chance = random.Random(0)  # noqa: S311 - a repeatable run

    class Datetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.fromtimestamp(EPOCH_S + now(), tz or UTC)

    def uuid7(*_: Any) -> str:
        return f"01900000-0000-7000-8000-{next(numbers):012x}"

    def token_urlsafe(_: int | None = None) -> str:
        return f"token-{next(numbers)}"

    replacements: tuple[tuple[Any, str, Any], ...] = (
        (time, "time", lambda: EPOCH_S + now()),
        (time, "monotonic", now),
        (circuitbreaker, "monotonic", now),
        (os, "urandom", chance.randbytes),
        (os, "getpid", lambda: 1),
        (random, "Random", _SeededRandom),
        (secrets, "token_urlsafe", token_urlsafe),
        (uuid_utils, "uuid7", uuid7),
        (inferfleet.schemas.job, "datetime", Datetime),
        (inferfleet.producer.publisher, "NACK_PAUSE_S", NACK_PAUSE_S),
        (inferfleet.worker.intake, "ROOM_INTERVAL_S", INTAKE_INTERVAL_S),
        (inferfleet.worker.topology, "WATCH_INTERVAL_S", WATCH_INTERVAL_S),
        (inferfleet.worker.urgent, "LOOK_INTERVAL_S", LOOK_INTERVAL_S),
        # A worker's HTTP port would be the only real listener, and nobody calls it.
        (inferfleet.worker.worker, "serve_http", _serve_nothing),
        (inferfleet.worker.heartbeat, "version", _no_version),
        # redis-py reads it from a file for each connection.
        (redis.utils, "get_lib_version", lambda: _no_version("redis")),
        # Code iterates over sets of these, in the order of their hashes.
        (JobRun, "__hash__", hash_by_number),
        (TaskWrapper, "__hash__", _hash_of_the_task),
    )
    for place, name, replaced in replacements:
        setattr(place, name, replaced)
    random.seed(0)


def _serve_nothing(**_: Any) -> nullcontext[int]:
    return nullcontext(0)


def _no_version(_: str) -> str:
    return "simulated"


def _hash_of_the_task(wrapper: Any) -> int:
    return hash(wrapper.task)
