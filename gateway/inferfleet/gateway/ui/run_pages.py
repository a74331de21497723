"""Pages of agents' runs: the list, one with its steps, and answers to what it asks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.pages import UI_PATH, Pages
from inferfleet.gateway.ui.run_steps import step_views
from inferfleet.producer.job_making import check_pool
from inferfleet.producer.openai.refusals import bad_request
from inferfleet.schemas.run import DEFAULT_AGENT_QUEUE, RunState

LISTED: Final = 100

STATES: Final = [state.value for state in RunState if not state.terminal]


def run_pages(gateway: Gateway, pages: Pages) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/runs")

    @router.get("")
    async def runs(
        request: Request,
        id: str = "",  # noqa: A002 - a member of the query
        queue: str = "",
        state: str = "",
        after: str = "",
    ) -> Response:
        if id.strip():
            return _to(id.strip())
        queue = queue.strip() or DEFAULT_AGENT_QUEUE
        check_pool(queue)
        if state and state not in STATES:
            raise bad_request(f"state: {state[:32]!r} is not one of {', '.join(STATES)}", param="state")
        page = await gateway.runs_of(request).page(
            queue, state=RunState(state) if state else None, after=after or None, limit=LISTED
        )
        return pages.page(
            request,
            "runs.html",
            runs=page.runs,
            queue=queue,
            state=state,
            states=STATES,
            behind=after,
            more=page.next and urlencode({"queue": queue, "state": state, "after": page.next}),
        )

    @router.get("/{run_id}")
    async def run(request: Request, run_id: str) -> Response:
        record, steps, questions = await gateway.runs_of(request).show(run_id)
        return pages.page(request, "run.html", run=record, steps=list(step_views(steps)), questions=questions)

    @router.post("/{run_id}/cancel")
    async def cancel(request: Request, run_id: str) -> Response:
        await read_form(request, gateway.settings)
        await gateway.runs_of(request).cancel(run_id)
        return _to(run_id)

    @router.post("/{run_id}/approve")
    async def approve(request: Request, run_id: str) -> Response:
        form = await read_form(request, gateway.settings)
        await gateway.runs_of(request).approve(run_id, form.get("question", ""))
        return _to(run_id)

    @router.post("/{run_id}/answer")
    async def answer(request: Request, run_id: str) -> Response:
        form = await read_form(request, gateway.settings)
        # An empty field is not in the form, and must not make the call.
        result = form.get("result", "")
        await gateway.runs_of(request).approve(run_id, form.get("question", ""), result=result)
        return _to(run_id)

    @router.post("/{run_id}/deny")
    async def deny(request: Request, run_id: str) -> Response:
        form = await read_form(request, gateway.settings)
        reason = form.get("reason", "")
        await gateway.runs_of(request).deny(run_id, form.get("question", ""), reason=reason)
        return _to(run_id)

    return router


def _to(run_id: str) -> Response:
    return RedirectResponse(f"{UI_PATH}/runs/{quote(run_id, safe='')}", HTTPStatus.SEE_OTHER)
