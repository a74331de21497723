"""The demo's jobs: mixed in length and priority, and the same again for the same seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from inferfleet.schemas.job import Job, Priority

POOL = "demo"

SHARES: Mapping[Priority, float] = MappingProxyType(
    {Priority.BATCH: 0.5, Priority.NORMAL: 0.35, Priority.HIGH: 0.15}
)

URGENT_PROMPT = "A pump in hall 3 is over 90 degrees. Say in a few sentences what to do first, and why."
URGENT_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work: its share of the jobs, and the range its answers' lengths are from, in tokens."""

    share: float
    prompt: str
    shortest: int
    longest: int


TASKS = (
    Task(0.50, "Answer ticket {number} in one sentence.", 16, 64),
    Task(0.35, "Write a reply to letter {number}, friendly and complete.", 128, 320),
    Task(0.15, "Write a report on site {number} with causes, costs and next steps.", 512, 1024),
)
"""Mostly short answers and a few long ones, as real traffic has them. 213 tokens on average."""

REAL_ENGINE_SHRINKS = 4
"""A real engine gets answers this much shorter: without a GPU, too, the demo shall end in a minute."""


def mixed_jobs(count: int, *, seed: int, engine: str) -> list[Job]:
    """Make jobs of all kinds but the urgent one. Their waiting time counts from this moment on."""
    chance = random.Random(seed)  # noqa: S311 - the same load again is what it is for
    jobs: list[Job] = []
    for number in range(1, count + 1):
        task = chance.choices(TASKS, weights=[task.share for task in TASKS])[0]
        priority = chance.choices(list(SHARES), weights=list(SHARES.values()))[0]
        tokens = chance.randint(task.shortest, task.longest)
        body = _body(task.prompt.format(number=number), tokens, engine)
        jobs.append(Job(pool=POOL, body=body, priority=priority))
    return jobs


def urgent_job(*, engine: str) -> Job:
    """Make the one urgent job, whose tokens are streamed."""
    body = _body(URGENT_PROMPT, URGENT_TOKENS, engine)
    return Job(pool=POOL, body=body, priority=Priority.URGENT, stream=True)


def _body(prompt: str, tokens: int, engine: str) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
    if engine == "simulated":
        # Left to itself it would never say more than 64 tokens.
        return {**body, "max_tokens": tokens, "ignore_eos": True}
    return {**body, "max_tokens": tokens // REAL_ENGINE_SHRINKS}
