"""Estimates how much work jobs are, from the lengths of requests and of earlier answers.

Work is counted in tokens of prompts, and a token of an answer counts as four of them: a GPU reads a prompt
many tokens at a time, and writes each answer token by token. The simulated engine's Llama 3.1 8B on an H100
reads 30,000 tokens a second, and writes 6,800 with 64 answers at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pydantic import TypeAdapter, ValidationError

from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel

if TYPE_CHECKING:
    from inferfleet.schemas.heartbeat import Heartbeat

ANSWER_TOKEN: Final = 4
"""The work of a token of an answer."""

EACH: Final = 64
"""The work of a job besides its tokens. Otherwise a short question to an embedding model would be none."""

REMEMBERED: Final = 100
"""How many jobs or answers a mean is of, about: each new one counts as much as one of so many."""

ENVELOPE_BYTES: Final = 300
"""How many bytes of a request are about the job and not for the model."""

MOST_TOKENS: Final = 2**31
"""What a larger limit counts as."""

_whole: Final[TypeAdapter[int]] = TypeAdapter(int)
"""Reads whole numbers of a body as engines do: ``"100.0"`` is 100."""

BYTES_PER_TOKEN: Final = 4
"""How many bytes of a request count as one token, about right for English."""


class JobSize(NamedTuple):
    """What is known of a job before it runs. ``most_tokens`` limits its answer; ``None`` is no limit."""

    prompt_tokens: int
    most_tokens: int | None

    @classmethod
    def of(cls, endpoint: Endpoint, body: Mapping[str, Any], *, request_bytes: int) -> JobSize:
        """Return the size of a job whose request has so many bytes. It never fails, whatever the body has."""
        prompt_tokens = max(0, request_bytes - ENVELOPE_BYTES) // BYTES_PER_TOKEN
        return cls(prompt_tokens, most_tokens(endpoint, body))

    @classmethod
    def decoded(cls, text: str) -> JobSize | None:
        """Read what ``encoded`` has written; ``None`` if it is something else."""
        prompt, _, most = text.partition("/")
        try:
            return cls(int(prompt), int(most) if most else None)
        except ValueError:
            return None

    def encoded(self) -> str:
        """Return the size as text."""
        return f"{self.prompt_tokens}/{'' if self.most_tokens is None else self.most_tokens}"


class AnswerMean(WireModel):
    """The mean length in tokens of ``jobs`` answers that had limits up to ``up_to``, or none.

    Each group has twice the limit of the one before it.
    """

    up_to: Count | None = None
    jobs: Count
    tokens: float


class JobMean(WireModel):
    """The means of ``jobs`` jobs that the engine had: for how many seconds, and how much work they were."""

    jobs: Count
    seconds: float
    work: float


class Means:
    """Counts jobs that the engine had, and answers by their limits. About the last hundred of each count."""

    def __init__(self) -> None:
        self._jobs = 0
        self._seconds = self._work = 0.0
        self._answers: dict[int | None, tuple[int, float]] = {}

    @property
    def job(self) -> JobMean | None:
        """The mean job; ``None`` before the first."""
        return JobMean(jobs=self._jobs, seconds=self._seconds, work=self._work) if self._jobs else None

    @property
    def answers(self) -> tuple[AnswerMean, ...]:
        """The mean answer of each group."""
        return tuple(
            AnswerMean(up_to=up_to, jobs=jobs, tokens=round(mean, 1))
            for up_to, (jobs, mean) in self._answers.items()
        )

    def add_job(self, size: JobSize, tokens: int, *, seconds: float) -> None:
        """Count a job that has ended after the engine had it for so long, with so many tokens."""
        self._jobs = min(self._jobs + 1, REMEMBERED)
        self._seconds += (seconds - self._seconds) / self._jobs
        self._work += (work_of(size.prompt_tokens, tokens) - self._work) / self._jobs

    def add_answer(self, most: int | None, tokens: int) -> None:
        """Count an answer that was allowed ``most`` tokens, and had so many."""
        group = _group_of(most)
        jobs, mean = self._answers.get(group, (0, 0.0))
        jobs = min(jobs + 1, REMEMBERED)
        self._answers[group] = jobs, mean + (tokens - mean) / jobs


class WorkDone(NamedTuple):
    """The mean work of the jobs that have ended lately, and the mean lengths of answers by their limits."""

    mean: float
    answers: Mapping[int | None, float]

    @classmethod
    def of(cls, workers: Iterable[Heartbeat]) -> WorkDone | None:
        """Merge what the workers of a pool say; ``None`` if their engines have had no job yet."""
        workers = list(workers)
        means = [worker.mean_job for worker in workers if worker.mean_job is not None]
        if not (jobs := sum(mean.jobs for mean in means)):
            return None
        work = sum(mean.jobs * mean.work for mean in means) / jobs
        return cls(work, merged([group for worker in workers for group in worker.answers]))

    def expected(self, size: JobSize, *, generated: int = 0) -> float:
        """Return the work that a job is expected to be, less the tokens that it has generated already."""
        return work_of(size.prompt_tokens, max(0.0, self._answer(size.most_tokens) - generated))

    def _answer(self, most: int | None) -> float:
        if most == 0:
            return 0.0
        known = self.answers.get(_group_of(most))
        if known is None:
            # No such job has ended yet.
            others = [tokens for up_to, tokens in self.answers.items() if up_to != 0]
            known = sum(others) / len(others) if others else self.mean / ANSWER_TOKEN
        return known if most is None else min(known, most)


def work_of(prompt_tokens: int, answer_tokens: float) -> float:
    """Return the work of a job with so many tokens."""
    return EACH + prompt_tokens + ANSWER_TOKEN * answer_tokens


def merged(groups: Iterable[AnswerMean]) -> dict[int | None, float]:
    """Return the mean of each group over several workers."""
    jobs: dict[int | None, int] = {}
    tokens: dict[int | None, float] = {}
    for group in groups:
        jobs[group.up_to] = jobs.get(group.up_to, 0) + group.jobs
        tokens[group.up_to] = tokens.get(group.up_to, 0.0) + group.jobs * group.tokens
    return {up_to: tokens[up_to] / count for up_to, count in jobs.items() if count}


def most_tokens(endpoint: Endpoint, body: Mapping[str, Any], *, each: int | None = None) -> int | None:
    """Return how many tokens the answers to a request may have. Never fails, whatever the body has.

    An answer without a limit counts as ``each``; if that is ``None``, so is what is returned.
    """
    if ENDPOINTS[endpoint].generated is None:
        return 0
    completion = endpoint is Endpoint.COMPLETIONS
    names = ("max_tokens",) if completion else ("max_completion_tokens", "max_tokens")
    given = next((value for name in names if (value := body.get(name)) is not None), None)
    limit = each if (read := _count(given)) is None else read
    if limit is None:
        return None
    choices = max(1, _count(body.get("n")) or 1)
    return min(limit * choices * (count_prompts(body) if completion else 1), MOST_TOKENS)


def count_prompts(body: Mapping[str, Any]) -> int:
    """Count the prompts of a completion; one prompt may be a list of token ids."""
    prompts = 0
    for given in filter(None, (body.get("prompt"), body.get("prompt_embeds"))):
        several = cast("list[object]", given) if isinstance(given, list) else []
        prompts += len(several) if several and isinstance(several[0], (str, list)) else 1
    return prompts


def _count(value: object) -> int | None:
    """Read a whole number that is not negative; ``None`` if it is none."""
    if value is None:
        return None
    if type(value) is int:
        # As nearly all are. A bool is another type.
        return value if value >= 0 else None
    try:
        count = _whole.validate_python(value)
    except ValidationError:
        return None
    return count if count >= 0 else None


def _group_of(most: int | None) -> int | None:
    """Return the group of a limit: the next power of two; 0 and no limit have groups of their own."""
    return 1 << (most - 1).bit_length() if most else most
