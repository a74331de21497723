"""Reads the jobs that a caller submits over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from inferfleet.producer.openai.refusals import bad_request
from inferfleet.producer.openai.requests import OPTIONS, Asked, read_json, read_options
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.problems import kind

MAX_JOBS: Final = 1000
"""How many jobs one request may submit."""

MEMBERS: Final = ("body", "endpoint", "stream", *OPTIONS)


def read_jobs(headers: Mapping[str, str], content: bytes) -> list[Asked] | Asked:
    """Read one job, or an array of jobs.

    Raises:
        RefusedError: The body is neither; the message says which job is wrong, and why.

    """
    given = read_json(content)
    if not isinstance(given, list):
        return _read_job(given, headers, "")
    jobs = cast("list[object]", given)
    if not 1 <= len(jobs) <= MAX_JOBS:
        raise bad_request(f"the body has {len(jobs):,} jobs; 1 to {MAX_JOBS:,} are allowed")
    if "idempotency-key" in headers:
        raise bad_request("Idempotency-Key: names one job; give each job of an array its own idempotency_key")
    return [_read_job(job, headers, f"[{position}].") for position, job in enumerate(jobs)]


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
    try:
        endpoint = Endpoint(job.get("endpoint", Endpoint.CHAT))
    except ValueError:
        raise bad_request(
            f"{place}endpoint: is not one of {', '.join(Endpoint)}", param=f"{place}endpoint"
        ) from None
    options = read_options({name: job[name] for name in OPTIONS if name in job}, headers)
    options["endpoint"] = endpoint
    options["stream"] = job.get("stream") is True
    return Asked(
        endpoint=endpoint, body=cast("dict[str, Any]", body), options=options, stream=False, timeout_s=None
    )
