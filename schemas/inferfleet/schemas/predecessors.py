"""What a job takes over from the jobs after which it runs: their texts, in place of ``{{jobs.0.text}}``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from inferfleet.schemas.job import Job

_TEXT: Final = re.compile(r"\{\{ ?jobs\.([0-9]{1,3})\.text ?\}\}")
"""The place of a predecessor's text, by its number in ``after``, from 0."""


def after_problem(job: Job) -> str | None:
    """Return why a job cannot run after others as it is; ``None`` if it can, or need not."""
    if job.after is None:
        return None
    for name in ("session_id", "not_before", "retrieve"):
        if getattr(job, name) is not None:
            return f"after: a job that runs after others has no {name}; leave one of them out"
    if job.id in job.after or len(set(job.after)) < len(job.after):
        return "after: names the job itself, or another job twice; name each other job once"
    if (last := max(_numbers(job.body), default=0)) >= len(job.after):
        return (
            f"body: {{{{jobs.{last}.text}}}} is the text of job number {last} of after, which has "
            f"{len(job.after)}, counted from 0"
        )
    return None


def prompt_problem(job: Job) -> str | None:
    """Return why the prompt of a job names texts of others, although it runs after none; ``None`` if not."""
    if job.after is not None or (first := next(_numbers(job.body), None)) is None:
        return None
    return (
        f"body: {{{{jobs.{first}.text}}}} stands for the text of a job in after, which names none; name the "
        "job there, or give the whole body to send these characters as they are"
    )


def bytes_with_texts(body: Mapping[str, Any], texts: Sequence[str]) -> int:
    """Return how many bytes these texts have in their places, in UTF-8, without making the body."""
    sizes = [len(text.encode()) for text in texts]
    return sum(sizes[number] for number in _numbers(body))


def with_texts(body: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return a body with the texts of the predecessors in their places. Places in these texts stay."""
    return cast("dict[str, Any]", _filled(body, texts))


def _filled(value: object, texts: Sequence[str]) -> object:
    match value:
        case str():
            return _TEXT.sub(lambda place: texts[int(place[1])], value)
        case Mapping():
            return {name: _filled(each, texts) for name, each in cast("Mapping[str, object]", value).items()}
        case list():
            return [_filled(each, texts) for each in cast("Sequence[object]", value)]
        case _:
            return value


def _numbers(value: object) -> Iterator[int]:
    match value:
        case str():
            yield from (int(place[1]) for place in _TEXT.finditer(value))
        case Mapping():
            for each in cast("Mapping[str, object]", value).values():
                yield from _numbers(each)
        case list():
            for each in cast("Sequence[object]", value):
                yield from _numbers(each)
        case _:
            pass
