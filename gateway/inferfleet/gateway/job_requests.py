"""Reads the jobs that a caller submits over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final, cast

from inferfleet.producer.job_making import LATER, OPTIONS_MEMBER, JobOptions
from inferfleet.producer.openai.refusals import bad_request
from inferfleet.producer.openai.requests import (
    OPTIONS,
    Asked,
    apart,
    parse,
    read_endpoint,
    read_json,
    read_options,
)
from inferfleet.producer.openai.scanning import scan
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.problems import kind

MAX_JOBS: Final = 1000
"""How many jobs one request may submit."""

MEMBERS: Final = ("body", "endpoint", "stream", *LATER, *OPTIONS)


async def read_jobs(headers: Mapping[str, str], content: bytes, *, most: int) -> list[Asked] | Asked:
    """Read one job, or an array of jobs, each of at most so many bytes.

    Raises:
        RefusedError: The body is neither; the message says which job is wrong, and why.

    """
    if not content.lstrip().startswith(b"["):
        _check_size(len(content), most, "the body")
        return _read_job(await apart(partial(read_json, content), content), headers, "")
    if "idempotency-key" in headers:
        raise bad_request("Idempotency-Key: names one job; give each job of an array its own idempotency_key")
    places, jobs = await apart(partial(_split, content, most), content)
    asked: list[Asked] = []
    for position, job in enumerate(jobs):
        if isinstance(job, dict):
            # One at a time, so that other requests go on meanwhile.
            await asyncio.sleep(0)
            job = parse(content[slice(*next(places))], f"[{position}]")
        asked.append(_read_job(job, headers, f"[{position}]."))
    return asked


def _split(content: bytes, most: int) -> tuple[Iterator[tuple[int, int]], list[object]]:
    """Return where the jobs of an array are, and the array with an empty object for each of them."""
    places = list(islice(scan(content), MAX_JOBS + 1))
    pieces: list[bytes] = []
    end = 0
    for position, (begin, behind) in enumerate(places):
        _check_size(behind - begin, most, f"[{position}]")
        pieces += (content[end:begin], b"{}")
        end = behind
    rest = b"".join((*pieces, content[end:]))
    _check_size(len(rest), most, "what is around the jobs")
    jobs = cast("list[object]", parse(rest))
    if not 1 <= len(jobs) <= MAX_JOBS:
        raise bad_request(f"the body has {len(jobs):,} jobs; 1 to {MAX_JOBS:,} are allowed")
    return iter(places), jobs


def _check_size(size: int, most: int, what: str) -> None:
    if size > most:
        raise bad_request(f"{what} is {size:,} bytes; the limit is {most:,} (INFERFLEET_MAX_BODY_BYTES)")


def _read_job(given: object, headers: Mapping[str, str], place: str) -> Asked:
    if not isinstance(given, dict):
        raise bad_request(f"{place[:-1] or 'the body'} must be an object, not {kind(given)}")
    job = cast("dict[str, Any]", given)
    for name in job:
        if name not in MEMBERS:
            raise bad_request(
                f"{place}{name[:64]}: is not a member of a job{did_you_mean(name[:64], MEMBERS)}; there are "
                f"{', '.join(MEMBERS)}",
                param=f"{place}{name[:64]}",
            )
    body = job.get("body")
    if not isinstance(body, dict):
        raise bad_request(f"{place}body: must be an object, not {kind(body)}", param=f"{place}body")
    for name in (*LATER, OPTIONS_MEMBER):
        if name in body:
            raise bad_request(
                f"{place}body.{name}: no engine knows this; options of a job stand beside its body",
                param=f"{place}body.{name}",
            )
    endpoint = read_endpoint(job.get("endpoint", Endpoint.CHAT), place)
    options = read_options({name: job[name] for name in OPTIONS if name in job}, headers)
    options |= cast("JobOptions", {name: job[name] for name in LATER if job.get(name) is not None})
    options["endpoint"] = endpoint
    stream = job.get("stream", False)
    if not isinstance(stream, bool):
        raise bad_request(f"{place}stream: must be true or false", param=f"{place}stream")
    options["stream"] = stream
    return Asked(
        endpoint=endpoint, body=cast("dict[str, Any]", body), options=options, stream=False, timeout_s=None
    )
