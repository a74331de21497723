"""Runs of agents over HTTP: start, list, read, replay, cancel, and answer what they ask."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, WithJsonSchema

from inferfleet.gateway.bodies import read_body
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.documents import COUNT, OBJECT, STRING, answer, list_of, members, request_of_model
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.json_answer import json_answer
from inferfleet.gateway.run_requests import ApproveCall, DenyCall, ReplayRun, StartRun
from inferfleet.producer.job_making import read_priority
from inferfleet.producer.openai.requests import apart, check_members, read_model, read_object
from inferfleet.producer.tracing import trace_of_request
from inferfleet.schemas.job import PoolName
from inferfleet.schemas.prices import plain
from inferfleet.schemas.run import DEFAULT_AGENT_QUEUE, QuestionKind, RunRecord, RunState

Model = TypeVar("Model", bound=BaseModel)

Limit = Annotated[int, Query(ge=1, le=1000, description="The most runs to list.")]
After = Annotated[str | None, Query(description="The `next` of the previous page.")]

_STATE: Final = {"enum": list(RunState)}

State = Annotated[RunState | None, WithJsonSchema(_STATE)]
"""A state of a run, spelt out: the document has no schema of its own for it."""
_OR_NULL: Final = {"type": ["object", "null"]}
_INTEGER_OR_NULL: Final = {"type": ["integer", "null"]}
_DESCRIBED: Final[dict[str, Any]] = {
    "object": {"const": "agent.run"},
    "id": STRING,
    "agent": STRING,
    "queue": STRING,
    "state": _STATE,
    "input": STRING,
    "priority": _INTEGER_OR_NULL,
    "limits": _OR_NULL,
    "parent": _OR_NULL,
    "created_ms": COUNT,
    "wake_ms": _INTEGER_OR_NULL,
    "cost": {"type": ["string", "null"]},
    "result": _OR_NULL,
}
_QUESTION: Final = members(
    id=STRING,
    call=STRING,
    tool=STRING,
    arguments=STRING,
    kind={"enum": list(QuestionKind)},
    until_ms=_INTEGER_OR_NULL,
)
_RUN: Final = members(
    **_DESCRIBED,
    steps={"type": "array", "items": OBJECT},
    questions={"type": "array", "items": _QUESTION},
)
_LISTED: Final = list_of(
    members(**_DESCRIBED), has_more={"type": "boolean"}, next={"type": ["string", "null"]}
)
_STARTED: Final = members(id=STRING, agent=STRING, queue=STRING, url=STRING)
_CANCELLED: Final = members(id=STRING, state=_STATE)
_ANSWERED: Final = members(id=STRING, question=STRING)


def agent_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1/agents", tags=["Agents"])

    async def read(request: Request, model: type[Model]) -> Model:
        content = await read_body(request, gateway.settings)
        return read_model(model, await apart(partial(read_object, content), content))

    @router.post(
        "/{agent}/runs",
        status_code=HTTPStatus.ACCEPTED,
        openapi_extra=request_of_model(StartRun, {"input": "Buy two of 4711."}),
        responses=answer(_STARTED, status=HTTPStatus.ACCEPTED),
    )
    async def start(request: Request, agent: str) -> Response:
        """Start a run of an agent. With an `Idempotency-Key`, the same run is started only once."""
        asked = await read(request, StartRun)
        named = request.headers.get("inferfleet-priority", asked.priority)
        priority = None if named is None else read_priority(str(named))
        admission = gateway.admission_of(caller_of(request).key)
        if admission is not None:
            priority = await admission.run_priority(asked.queue, priority)
        run_id = await gateway.runs_of(request).start(
            agent,
            asked.input,
            queue=asked.queue,
            priority=priority,
            limits=asked.run_limits,
            idempotency_key=request.headers.get("idempotency-key"),
            traceparent=trace_of_request(request.headers).get("traceparent"),
        )
        return _started(run_id, agent, asked.queue)

    @router.get("/runs", responses=answer(_LISTED))
    async def list_runs(
        request: Request,
        queue: PoolName = DEFAULT_AGENT_QUEUE,
        state: State = None,
        limit: Limit = 100,
        after: After = None,
    ) -> Response:
        """List the unfinished runs of a queue. Those that are `waiting` may ask a person.

        Each `input` is cut to its first 200 characters. A page may have fewer runs than `limit`, even none,
        while `has_more` says that there may be more.
        """
        check_members(request.query_params, ("queue", "state", "limit", "after"))
        page = await gateway.runs_of(request).page(queue, state=state, after=after, limit=limit)
        runs = list(map(_described, page.runs))
        return json_answer(
            {"object": "list", "data": runs, "has_more": page.next is not None, "next": page.next}
        )

    @router.get("/runs/{run_id}", responses=answer(_RUN))
    async def get(request: Request, run_id: str) -> Response:
        """Read a run: its state, its steps, what it asks a person, and its result if it has ended."""
        record, steps, questions = await gateway.runs_of(request).show(run_id)
        return json_answer(
            {
                **_described(record),
                "steps": [step.model_dump(mode="json") for step in steps],
                "questions": list(map(asdict, questions)),
            }
        )

    @router.post(
        "/runs/{run_id}/replay",
        status_code=HTTPStatus.ACCEPTED,
        openapi_extra=request_of_model(ReplayRun, {"from_step": 1}),
        responses=answer(_STARTED, status=HTTPStatus.ACCEPTED),
    )
    async def replay(request: Request, run_id: str) -> Response:
        """Start a run with the order of another one: agent, input, queue, priority and limits.

        With `from_step` it begins with what that run had done before this call of its model; 1 is the first.
        With an `Idempotency-Key` it is started only once.
        """
        asked = await read(request, ReplayRun)
        runs = gateway.runs_of(request)
        order = (await runs.get(run_id)).order
        priority = order.priority
        admission = gateway.admission_of(caller_of(request).key)
        if admission is not None:
            priority = await admission.run_priority(order.queue, priority)
        new_id = await runs.replay(
            run_id,
            from_step=asked.from_step,
            priority=priority,
            idempotency_key=request.headers.get("idempotency-key"),
            traceparent=trace_of_request(request.headers).get("traceparent"),
        )
        return _started(new_id, order.agent, order.queue)

    @router.post("/runs/{run_id}/cancel", responses=answer(_CANCELLED))
    async def cancel(request: Request, run_id: str) -> Response:
        """Cancel a run, and all that it has started. A runner does it: until then it is unfinished."""
        return json_answer({"id": run_id, "state": await gateway.runs_of(request).cancel(run_id)})

    @router.post(
        "/runs/{run_id}/approve",
        openapi_extra=request_of_model(ApproveCall, {"question": "0.0:1"}),
        responses=answer(_ANSWERED),
    )
    async def approve(request: Request, run_id: str) -> Response:
        """Let a run make a tool call about which it asks. `question` is the `id` of one of its questions.

        The same answer may be repeated. Any other answer to what the run does not ask now is refused (409).
        """
        asked = await read(request, ApproveCall)
        await gateway.runs_of(request).approve(run_id, asked.question, result=asked.result)
        return json_answer({"id": run_id, "question": asked.question})

    @router.post(
        "/runs/{run_id}/deny",
        openapi_extra=request_of_model(DenyCall, {"question": "0.0:1", "reason": "too dear"}),
        responses=answer(_ANSWERED),
    )
    async def deny(request: Request, run_id: str) -> Response:
        """Let a run not make a tool call; the model reads the reason. The rest is as for `approve`."""
        asked = await read(request, DenyCall)
        await gateway.runs_of(request).deny(run_id, asked.question, reason=asked.reason)
        return json_answer({"id": run_id, "question": asked.question})

    return router


def _started(run_id: str, agent: str, queue: str) -> Response:
    started = {"id": run_id, "agent": agent, "queue": queue, "url": f"/v1/agents/runs/{run_id}"}
    return json_answer(started, HTTPStatus.ACCEPTED, {"location": started["url"]})


def _described(record: RunRecord) -> dict[str, Any]:
    shown = {"id", "agent", "queue", "input", "priority", "limits", "parent", "created_ms"}
    return {
        "object": "agent.run",
        **record.order.model_dump(mode="json", include=shown),
        "state": record.state,
        "wake_ms": record.wake_ms,
        "cost": None if record.cost is None else plain(record.cost),
        "result": record.result and record.result.model_dump(mode="json", exclude={"run_id"}),
    }
