"""Pages of jobs: the list, one with its text as it grows, and cancelling it.

A page of the list reads as much as one of the API's. Jobs that have ended are in no index, so the list has
only the last few that live workers told of, from the snapshot that all viewers share. A job's page reads its
record and its journal once, and while it runs, its script follows the journal.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.job_routes import LastEventId, check_job_id, job_events
from inferfleet.gateway.ui.answers import answer_parts
from inferfleet.gateway.ui.fleet_view import FleetView
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.pages import UI_PATH, Pages
from inferfleet.producer import JobFilter
from inferfleet.producer.job_making import check_pool
from inferfleet.producer.openai.refusals import bad_request
from inferfleet.schemas.heartbeat import EndedJob
from inferfleet.schemas.job import JobState

LISTED: Final = 100

FILTERS: Final = ("pool", "state", "priority", "session_id", "since", "until", "metadata")
"""Those of the API's list. ``metadata`` is one pair here, like ``team=search``, and times are UTC."""


def job_pages(gateway: Gateway, pages: Pages, view: FleetView) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/jobs")

    @router.get("")
    async def jobs(request: Request) -> Response:
        asked = request.query_params
        if job_id := asked.get("id", "").strip():
            return RedirectResponse(_path(job_id.lower()), HTTPStatus.SEE_OTHER)
        given = {name: asked.get(name, "").strip() for name in FILTERS}
        where = _where(**given)
        if where.state is not None and where.state.terminal:
            fleet, tenant = await view.snapshot(), caller_of(request).tenant
            jobs = [job for job in fleet.ended if job.tenant == tenant and _has_ended(job, where)]
            return pages.page(request, "ended_jobs.html", fleet=fleet, jobs=jobs, given=given, filtered=True)
        page = await gateway.fleet_of(request).jobs_page(
            where, after=asked.get("after") or None, limit=LISTED
        )
        return pages.page(
            request,
            "jobs.html",
            jobs=page.jobs,
            given=given,
            filtered=any(given.values()),
            behind=asked.get("after"),
            older=page.next and urlencode({**given, "after": page.next}),
        )

    @router.get("/{job_id}")
    async def job(request: Request, job_id: str) -> Response:
        check_job_id(job_id)
        fleet = gateway.fleet_of(request)
        record, events, position = await asyncio.gather(
            fleet.record(job_id), fleet.timeline(job_id), fleet.position(job_id)
        )
        response = record.result.response if record.result else None
        answer = answer_parts(response) if response else []
        return pages.page(request, "job.html", job=record, events=events, position=position, answer=answer)

    @router.get("/{job_id}/events")
    async def events(request: Request, job_id: str, last_event_id: LastEventId = None) -> Response:
        return await job_events(gateway, request, job_id, after=last_event_id)

    @router.post("/{job_id}/cancel")
    async def cancel(request: Request, job_id: str) -> Response:
        await read_form(request, gateway.settings)
        check_job_id(job_id)
        await gateway.fleet_of(request).cancel(job_id)
        return RedirectResponse(_path(job_id), HTTPStatus.SEE_OTHER)

    return router


def _where(
    *, pool: str, state: str, priority: str, session_id: str, since: str, until: str, metadata: str
) -> JobFilter:
    if state not in {"", *JobState}:
        raise bad_request(f"state: {state[:32]!r} is not one of {', '.join(JobState)}", param="state")
    for condition, value in (("session_id", session_id), ("metadata", metadata)):
        if value and state and JobState(state).terminal:
            raise bad_request(
                f"{condition}: of jobs that are {state} this is not known, so leave the field empty",
                param=condition,
            )
    if pool:
        check_pool(pool)
    name, is_pair, value = metadata.partition("=")
    if metadata and not (name and is_pair):
        raise bad_request(f"metadata: {metadata[:64]!r} is not like team=search", param="metadata")
    return JobFilter(
        pool=pool or None,
        state=JobState(state) if state else None,
        priority=read_level(priority),
        session_id=session_id or None,
        since=_moment("since", since),
        until=_moment("until", until),
        metadata={name: value} if metadata else {},
    )


def _has_ended(job: EndedJob, where: JobFilter) -> bool:
    return (
        job.state is where.state
        and where.pool in {None, job.pool}
        and where.priority in {None, job.priority}
        and (where.since is None or job.ended_at >= where.since)
        and (where.until is None or job.ended_at <= where.until)
    )


def read_level(priority: str) -> int | None:
    """Read a priority from a form, where an empty field means any."""
    if priority and priority not in map(str, range(10)):
        raise bad_request(f"priority: {priority[:32]!r} is not one of 0 to 9", param="priority")
    return int(priority) if priority else None


def _moment(name: str, text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None
    except ValueError:
        raise bad_request(f"{name}: {text[:32]!r} is not a time like 2026-01-31T18:00", param=name) from None


def _path(job_id: str) -> str:
    return f"{UI_PATH}/jobs/{quote(job_id, safe='')}"
