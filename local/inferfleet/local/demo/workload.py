"""The demo's jobs, of mixed lengths and priorities, and the same for the same seed."""

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


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of work: its share of the jobs, and the range of its answers' lengths in tokens.

    The jobs take the prompts in turn. ``{number}`` in a prompt becomes the job's number.
    """

    share: float
    prompts: tuple[str, ...]
    shortest: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The workload of an engine. ``jobs`` is the default number of jobs.

    Each request has these ``parameters`` besides its prompt and ``max_tokens``. The demo kills the worker
    that generates the urgent answer when the reader has seen ``kill_after_tokens`` of it.
    """

    jobs: int
    tasks: tuple[Task, ...]
    urgent_prompt: str
    urgent_tokens: int
    kill_after_tokens: int
    parameters: Mapping[str, Any]

    def mixed_jobs(self, count: int, *, seed: int) -> list[Job]:
        """Make jobs of all kinds but the urgent one. Their waiting time counts from this moment on."""
        rng = random.Random(seed)  # noqa: S311 - the same load again is what it is for
        jobs: list[Job] = []
        for number in range(1, count + 1):
            task = rng.choices(self.tasks, weights=[task.share for task in self.tasks])[0]
            priority = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
            prompt = task.prompts[number % len(task.prompts)].format(number=number)
            body = self._body(prompt, rng.randint(task.shortest, task.longest))
            jobs.append(Job(pool=POOL, body=body, priority=priority))
        return jobs

    def urgent_job(self) -> Job:
        """Make the one urgent job, whose tokens are streamed."""
        body = self._body(self.urgent_prompt, self.urgent_tokens)
        return Job(pool=POOL, body=body, priority=Priority.URGENT, stream=True)

    def _body(self, prompt: str, tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {"messages": messages, "max_tokens": tokens, **self.parameters}


SIMULATED = Workload(
    jobs=180,
    # Mostly short answers and a few long ones, as real traffic has them. 213 tokens on average.
    tasks=(
        Task(0.50, ("Answer ticket {number} in one sentence.",), 16, 64),
        Task(0.35, ("Write a reply to letter {number}, friendly and complete.",), 128, 320),
        Task(0.15, ("Write a report on site {number} with causes, costs and next steps.",), 512, 1024),
    ),
    urgent_prompt="A pump in hall 3 is over 90 degrees. Say in a few sentences what to do first, and why.",
    urgent_tokens=200,
    kill_after_tokens=80,
    # By default it would never generate more than 64 tokens.
    parameters=MappingProxyType({"ignore_eos": True}),
)

QUESTIONS = Workload(
    jobs=20,
    tasks=(
        Task(
            0.6,
            (
                "What is the capital of France? Answer in one sentence.",
                "Why is the sky blue? Answer in one sentence.",
                "Who wrote Romeo and Juliet? Answer in one sentence.",
                "What is the largest planet of the solar system? Answer in one sentence.",
                "Why do cats purr? Answer in one sentence.",
                "What does a bee do with nectar? Answer in one sentence.",
                "How many continents are there? Answer in one sentence.",
                "What is an atom? Answer in one sentence.",
            ),
            24,
            40,
        ),
        Task(
            0.4,
            (
                "Explain how a rainbow forms.",
                "Write a short poem about the sea.",
                "How does a bicycle stay upright?",
                "What is photosynthesis, and why does it matter?",
                "Explain to a child why we have seasons.",
                "How do vaccines work?",
                "Give three tips for learning a language.",
            ),
            64,
            112,
        ),
    ),
    urgent_prompt="My guests come in ten minutes. How do I make a good pot of tea, step by step?",
    urgent_tokens=160,
    kill_after_tokens=40,
    # So that a resumed answer is exactly the answer of an uninterrupted run.
    parameters=MappingProxyType({"temperature": 0}),
)
"""Short enough for a small model on a CPU, which answers all of them in about a minute."""


def workload_for(engine: str) -> Workload:
    """Choose questions worth reading for a real engine, and many jobs for the simulated one."""
    return SIMULATED if engine == "simulated" else QUESTIONS
