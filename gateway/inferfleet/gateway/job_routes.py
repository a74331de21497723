"""Jobs over HTTP: submit, list, read, wait, cancel, and follow their journals."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime

from inferfleet.gateway.bodies import job_bytes, read_body
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.documents import (
    COUNT,
    REFUSED,
    STRING,
    answer,
    answer_of_events,
    list_of,
    members,
    ref,
    request_of_jobs,
)
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.job_requests import read_jobs
from inferfleet.gateway.json_answer import json_answer
from inferfleet.gateway.waiting import EventResponse, answered
from inferfleet.producer import JobFilter
from inferfleet.producer.job_making import read_priority
from inferfleet.producer.journal_view import BEGINNING, JournalView
from inferfleet.producer.openai.api import WORKERS_HEADER
from inferfleet.producer.openai.refusals import Refusal, bad_request, refusal_of
from inferfleet.producer.openai.requests import Asked, check_members
from inferfleet.producer.openai.streams import EVENT_HEADERS, EventStream, Part
from inferfleet.producer.positions import WaitReason
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.errors import (
    InvalidJobError,
    JobNotFoundError,
    PartialSubmitError,
    WaitTimeoutError,
)
from inferfleet.schemas.job import JOB_ID, Job, JobState
from inferfleet.schemas.problems import MAX_QUOTED_CHARS
from inferfleet.schemas.result import JobRecord

MAX_WAIT_S: Final = 600.0

CONDITIONS: Final = (
    *("pool", "state", "priority", "session_id", "since", "until", "metadata[KEY]"),
    *("limit", "after"),
)

_ID: Final = re.compile(JOB_ID)
_MEMBER: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)

Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="How long to wait for its end, in seconds.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most jobs to list.")]
After = Annotated[str | None, Query(description="The `next` of the previous page.")]
Level = Annotated[str | None, Query(description="0 to 9, or a name, such as `high`.")]
Time = Annotated[AwareDatetime | None, Query(description="When they were accepted, or last published again.")]
LastEventId = Annotated[str | None, Header(description="The id of the last event that was seen.")]


_ACCEPTED: Final = members(id=STRING, pool=STRING, url=STRING)
_SUBMITTED: Final = {"anyOf": [_ACCEPTED, {"type": "array", "items": {"anyOf": [_ACCEPTED, REFUSED]}}]}
_LISTED: Final = list_of(ref("jobRecord"), has_more={"type": "boolean"}, next={"type": ["string", "null"]})
_METADATA: Final = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "description": "Members of the jobs' metadata, such as `metadata[team]=search`.",
    "schema": {"type": "object", "additionalProperties": STRING},
}
_CANCELLED: Final = members(id=STRING, state=STRING)
_REASON: Final = {"enum": list(WaitReason)}
_POSITION: Final = members(
    id=STRING,
    state=STRING,
    workers=COUNT,
    ahead={"type": ["integer", "null"], "minimum": 0},
    finished_per_s={"type": "number", "minimum": 0},
    starts_in_s={"type": ["number", "null"], "minimum": 0},
    reason={"anyOf": [_REASON, {"type": "null"}]},
    detail={"type": ["string", "null"]},
    waits={
        "type": "array",
        "items": members(
            reason=_REASON,
            detail=STRING,
            job_id={"type": ["string", "null"]},
            until={"type": ["string", "null"], "format": "date-time"},
        ),
    },
)


def job_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1/jobs", tags=["Jobs"])

    @router.post(
        "",
        status_code=HTTPStatus.ACCEPTED,
        openapi_extra=request_of_jobs(),
        responses=answer(_SUBMITTED, status=HTTPStatus.ACCEPTED),
    )
    async def submit(request: Request) -> Response:
        """Submit one job or an array of jobs. They go on whether or not anybody waits for them."""
        content = await read_body(request, gateway.settings, many=True)
        asked = await read_jobs(request.headers, content, most=job_bytes(gateway.settings))
        if isinstance(asked, Asked):
            api = gateway.api_of(request)
            route = await api.route(asked)
            job = await api.submit(asked)
            await gateway.webhooks.watch(caller_of(request).tenant, [job.id])
            headers = {"location": _url(job), WORKERS_HEADER: str(route.workers)}
            return json_answer(_accepted(job), HTTPStatus.ACCEPTED, headers)
        return await _submit_many(gateway, request, asked)

    @router.get("", responses=answer(_LISTED), openapi_extra={"parameters": [_METADATA]})
    async def list_jobs(
        request: Request,
        pool: str | None = None,
        state: JobState | None = None,
        priority: Level = None,
        session_id: str | None = None,
        since: Time = None,
        until: Time = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        """List unfinished jobs by pool, the most urgent first, and within a priority the oldest first.

        A page may have fewer jobs than `limit`, even none, while `has_more` says that there may be more.
        """
        metadata = _metadata(request)
        where = JobFilter(
            pool=pool,
            state=state,
            priority=None if priority is None else read_priority(priority),
            session_id=session_id,
            since=since,
            until=until,
            metadata=metadata,
        )
        page = await gateway.fleet_of(request).jobs_page(where, after=after, limit=limit)
        jobs = list(map(_described, page.jobs))
        return json_answer(
            {"object": "list", "data": jobs, "has_more": page.next is not None, "next": page.next}
        )

    @router.get("/{job_id}", responses=answer(ref("jobRecord")))
    async def get(request: Request, job_id: str, wait: Wait = 0) -> Response:
        """Read a job's record, with its result if it has ended."""
        check_job_id(job_id)
        fleet = gateway.fleet_of(request)
        if wait:
            with suppress(WaitTimeoutError):
                await answered(request, fleet.wait(job_id, timeout_s=wait), over=gateway.shutdown.draining)
        return json_answer(_described(await fleet.get(job_id)))

    @router.get("/{job_id}/position", responses=answer(_POSITION))
    async def position(request: Request, job_id: str) -> Response:
        """Tell why a job does not run, how many jobs are ahead of it, and when it may start.

        A job without a reason runs or has ended. Several gates may be closed; the first is also `reason` and
        `detail`.
        """
        check_job_id(job_id)
        fleet = gateway.fleet_of(request)
        record, found = await asyncio.gather(fleet.record(job_id), fleet.position(job_id))
        first = next(iter(found.waits), None)
        return json_answer(
            {
                "id": job_id,
                "state": record.state,
                "workers": found.workers,
                "ahead": found.ahead,
                "finished_per_s": found.finished_per_s,
                "starts_in_s": found.starts_in_s,
                "reason": first and first.reason,
                "detail": first and first.detail,
                "waits": found.waits,
            }
        )

    @router.delete("/{job_id}", responses=answer(_CANCELLED) | answer(_CANCELLED, status=HTTPStatus.ACCEPTED))
    async def cancel(request: Request, job_id: str) -> Response:
        """Cancel a job. One that runs is asked to stop, and is still running when this returns."""
        check_job_id(job_id)
        state = await gateway.fleet_of(request).cancel(job_id)
        status = HTTPStatus.ACCEPTED if state is JobState.RUNNING else HTTPStatus.OK
        return json_answer({"id": job_id, "state": state}, status)

    @router.get("/{job_id}/events", response_class=Response, responses=answer_of_events())
    async def events(
        request: Request, job_id: str, last_event_id: LastEventId = None, after: str | None = None
    ) -> Response:
        """Follow a job's journal, after the last event that was seen, until the job has ended.

        Any gateway continues the stream of another one. If no event follows, the answer is 204.
        """
        name = "Last-Event-ID" if last_event_id else "after"
        return await job_events(gateway, request, job_id, after=last_event_id or after, name=name)

    return router


async def job_events(
    gateway: Gateway, request: Request, job_id: str, *, after: str | None, name: str = "Last-Event-ID"
) -> Response:
    """Follow a job's journal, for the API's route and for the web page. ``name`` is where ``after`` stood."""
    check_job_id(job_id)
    cursor = after or BEGINNING
    try:
        JournalView.at(cursor)
    except ValueError:
        quoted = cursor[:MAX_QUOTED_CHARS]
        raise bad_request(f"{name}: {quoted!r} is not the id of an event", param=name) from None
    fleet = gateway.fleet_of(request)
    record = await fleet.record(job_id)
    stream = EventStream(_lines(fleet, job_id, cursor), last_events=partial(_failed, fleet), cursor=cursor)
    if record.state.terminal and not await stream.start(within_s=None):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return EventResponse(
        stream,
        headers=EVENT_HEADERS,
        until=gateway.shutdown.draining,
        interrupted=partial(_resume, stream),
        stalled_s=gateway.settings.read_timeout_s,
    )


async def _submit_many(gateway: Gateway, request: Request, asked: Sequence[Asked]) -> Response:
    api, fleet = gateway.api_of(request), gateway.fleet_of(request)
    jobs: list[Job] = []
    for position, each in enumerate(asked):
        await api.route(each)
        # Checking a thousand jobs takes long, and other requests go on meanwhile.
        await asyncio.sleep(0)
        try:
            jobs.append(fleet.make(each.body, **each.options))
        except InvalidJobError as error:
            raise InvalidJobError(f"[{position}]: {error}") from error
    try:
        accepted = await fleet.submit_many(jobs)
        ids, made = [job.id for job in accepted], list(map(_accepted, accepted))
    except PartialSubmitError as error:
        if not error.accepted:
            raise error.rejected[0] from error
        ids, found = list(error.accepted), iter(error.accepted)
        made = [
            {"error": _visible(fleet, refusal_of(error.rejected[position])).error()}
            if position in error.rejected
            else _accepted(job.model_copy(update={"id": next(found)}))
            for position, job in enumerate(jobs)
        ]
    await gateway.webhooks.watch(fleet.tenant, ids)
    return json_answer(made, HTTPStatus.ACCEPTED)


def _visible(fleet: TenantFleet, refusal: Refusal) -> Refusal:
    return replace(refusal, message=fleet.visible_text(refusal.message))


def _metadata(request: Request) -> dict[str, str]:
    members: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if (member := _MEMBER.fullmatch(name)) is not None:
            members[member[1]] = value
        elif name.startswith("metadata"):
            raise bad_request(
                f"{name}: must name a member of the metadata, such as metadata[team]=search", param="metadata"
            )
        else:
            # Without a condition that is misspelt, the list would have jobs that nobody has asked for.
            check_members([name], CONDITIONS)
    return members


def _described(record: JobRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"reply_to"})


async def _lines(fleet: TenantFleet, job_id: str, cursor: str) -> AsyncGenerator[Part]:
    async with aclosing(fleet.stream(job_id, after=cursor)) as lines:
        async for line in lines:
            entry = line.entry.model_dump_json(exclude_none=True)
            yield Part(f"id: {line.id}\nevent: {line.entry.kind}\ndata: {entry}\n\n".encode(), line.id)


def _resume(stream: EventStream) -> bytes:
    """Tell the client to connect again; its Last-Event-ID is the last one it saw."""
    last = orjson.dumps({"last_event_id": stream.cursor}).decode()
    return f"retry: 1000\nevent: resume\ndata: {last}\n\n".encode()


def _failed(fleet: TenantFleet, refusal: Refusal) -> bytes:
    return b"event: failed\ndata: " + _visible(fleet, refusal).body() + b"\n\n"


def check_job_id(job_id: str) -> None:
    """Raise ``JobNotFoundError`` unless a job may have this id."""
    if not _ID.fullmatch(job_id):
        raise JobNotFoundError(job_id[:64])


def _accepted(job: Job) -> dict[str, Any]:
    return {"id": job.id, "pool": job.pool, "url": _url(job)}


def _url(job: Job) -> str:
    return f"/v1/jobs/{job.id}"
