"""Batches, as in OpenAI's API."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from inferfleet.gateway.batches.file_routes import After, files_of, find_file
from inferfleet.gateway.batches.uploads import read_ttl
from inferfleet.gateway.bodies import read_body
from inferfleet.gateway.callers import Caller, caller_of
from inferfleet.gateway.documents import COUNT, STRING, answer, list_of, members, request_body
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.json_answer import json_answer
from inferfleet.producer.batch.line_ids import new_batch_id
from inferfleet.producer.job_making import OPTIONS_MEMBER, read_priority
from inferfleet.producer.openai.lists import list_page
from inferfleet.producer.openai.refusals import Refusal, RefusedError, bad_request, not_found
from inferfleet.producer.openai.requests import apart, check_members, read_endpoint, read_object, read_options
from inferfleet.producer.openai.response_fields import Metadata
from inferfleet.schemas.batch import BatchOrder, BatchRecord, BatchState
from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.errors import ServiceRefusedError, ServiceUnreachableError
from inferfleet.schemas.job import Job, Priority
from inferfleet.schemas.request import job_error

logger = logging.getLogger(__name__)

_ID: Final = re.compile(r"batch_[0-9a-f]{32}", re.ASCII)

_WINDOW: Final = re.compile(r"([1-9][0-9]{0,3})([mhd])", re.ASCII)
_MINUTES: Final[Mapping[str, int]] = {"m": 1, "h": 60, "d": 24 * 60}

MAX_WINDOW_MINUTES: Final = 30 * 24 * 60

PRIORITIES: Final = ((60, Priority.BATCH + 2), (24 * 60 - 1, Priority.BATCH + 1))
"""Windows in minutes, and the priority of batches with at most each. All others have ``batch``."""

MEMBERS: Final = ("completion_window", "endpoint", "input_file_id", "metadata", "output_expires_after")

OPTIONS: Final = frozenset({"max_attempts", "pool", "priority", "timeout_s"})
"""The options of jobs that a batch may set for all its lines."""

Limit = Annotated[int, Query(ge=1, le=100, description="The most batches to list.")]


_ORDER: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": STRING,
        "endpoint": {"enum": list(Endpoint)},
        "completion_window": {"type": "string", "pattern": f"^{_WINDOW.pattern}$"},
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": 16,
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
        "output_expires_after": {
            "type": ["object", "null"],
            "properties": {"anchor": {"const": "created_at"}, "seconds": {"type": ["integer", "string"]}},
            "additionalProperties": False,
        },
        OPTIONS_MEMBER: {
            "type": ["object", "null"],
            "properties": {name: {} for name in sorted(OPTIONS)},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
_EXAMPLE: Final = {"input_file_id": "file-…", "endpoint": Endpoint.CHAT, "completion_window": "24h"}
_BATCH: Final = members(
    id=STRING,
    object={"const": "batch"},
    status={"enum": list(BatchState)},
    input_file_id=STRING,
    request_counts=members(total=COUNT, completed=COUNT, failed=COUNT),
)


_METADATA: Final = TypeAdapter[dict[str, str]](Metadata)

_UNCONFIRMED: Final = Refusal(
    status=HTTPStatus.SERVICE_UNAVAILABLE,
    code="batch_unconfirmed",
    message="Redis did not confirm the batch: it may or may not run. If it runs, GET /v1/batches lists it",
)


def batch_routes(gateway: Gateway) -> APIRouter:
    """Make the routes."""
    records = gateway.batches
    router = APIRouter(prefix="/v1/batches", tags=["Files and batches"])

    @router.post("", openapi_extra=request_body(_ORDER, _EXAMPLE), responses=answer(_BATCH))
    async def create(request: Request) -> Response:
        """Run every line of a file. If this gateway stops, another one continues the batch."""
        content = await read_body(request, gateway.settings)
        caller = caller_of(request)
        files_of(gateway)
        given = await apart(partial(read_object, content), content)
        order = _order(gateway, caller, given, request.headers)
        await find_file(gateway, order.input_file_id, caller.tenant, param="input_file_id")
        await _reserve_place(gateway, order)
        try:
            await records.create(order, ttl_s=gateway.settings.file_ttl_s)
        except (ServiceRefusedError, ServiceUnreachableError) as error:
            # Repeating the call could create the batch twice.
            logger.warning("batch %s may or may not have been created (%s)", order.id, error)
            raise RefusedError(_UNCONFIRMED) from error
        gateway.new_batch.set()
        return json_answer(_described(BatchRecord(order=order)))

    @router.get("", responses=answer(list_of(_BATCH)))
    async def list_batches(request: Request, after: After = None, limit: Limit = 20) -> Response:
        """List batches, the newest first."""
        files_of(gateway)
        if after is not None and not _ID.fullmatch(after):
            raise bad_request(f"after: {after[:64]!r} is not the id of a batch", param="after")
        page = await records.page(caller_of(request).tenant, after=after, limit=limit)
        return json_answer(list_page(list(map(_described, page.records)), more=page.more))

    @router.get("/{batch_id}", responses=answer(_BATCH))
    async def retrieve(request: Request, batch_id: str) -> Response:
        """Return the state and the progress of a batch."""
        return json_answer(_described(await find_batch(gateway, batch_id, caller_of(request))))

    @router.post("/{batch_id}/cancel", responses=answer(_BATCH))
    async def cancel(request: Request, batch_id: str) -> Response:
        """Cancel a batch. Lines that already have an answer keep it."""
        return json_answer(_described(await cancel_batch(gateway, batch_id, caller_of(request))))

    return router


async def _reserve_place(gateway: Gateway, order: BatchOrder) -> None:
    most = gateway.settings.max_batches
    if not await gateway.batches.reserve(order.tenant, order.id, most=most):
        raise RefusedError(
            Refusal(
                status=HTTPStatus.FORBIDDEN,
                code="too_many_batches",
                message=f"{most:,} batches are open, which is the limit (INFERFLEET_MAX_BATCHES); "
                "wait until one has ended, or cancel one",
            )
        )


def _order(gateway: Gateway, caller: Caller, given: dict[str, Any], headers: Mapping[str, str]) -> BatchOrder:
    options = read_options(given.get(OPTIONS_MEMBER), headers)
    check_members(given, (*MEMBERS, OPTIONS_MEMBER))
    input_file_id = given.get("input_file_id")
    if not isinstance(input_file_id, str):
        raise bad_request("input_file_id: must be the id of a file", param="input_file_id")
    endpoint = read_endpoint(given.get("endpoint"))
    minutes = _window(window := given.get("completion_window"))
    policy = given.get("output_expires_after")
    if policy is not None and not isinstance(policy, dict):
        raise bad_request("output_expires_after: must be an object", param="output_expires_after")
    ttl_s = read_ttl(cast("dict[str, Any]", policy or {}), "output_expires_after")
    now_ms = gateway.batches.now_ms()
    return BatchOrder(
        id="batch_" + new_batch_id(at_ms=now_ms).replace("-", ""),
        tenant=caller.tenant,
        input_file_id=input_file_id,
        endpoint=endpoint,
        completion_window=cast("str", window),
        created_ms=now_ms,
        deadline_ms=now_ms + minutes * 60_000,
        options=_options(cast("dict[str, Any]", options), minutes, caller),
        key_id=caller.key and caller.key.id,
        metadata=_metadata(given.get("metadata")),
        output_ttl_s=ttl_s or gateway.settings.file_ttl_s,
    )


def _window(window: object) -> int:
    """Return how long a window is, in minutes."""
    found = _WINDOW.fullmatch(window) if isinstance(window, str) else None
    minutes = int(found[1]) * _MINUTES[found[2]] if found else 0
    if not 0 < minutes <= MAX_WINDOW_MINUTES:
        raise bad_request(
            "completion_window: must be like 24h, 90m or 7d, and not longer than 30d",
            param="completion_window",
        )
    return minutes


def _options(given: dict[str, Any], minutes: int, caller: Caller) -> dict[str, Any]:
    """Check the options of all jobs, and choose their priority."""
    options = {name: value for name, value in given.items() if name not in {"traceparent", "tracestate"}}
    for name in options:
        if name not in OPTIONS:
            raise bad_request(
                f"{name}: cannot be set for a batch; these can: {', '.join(sorted(OPTIONS))}", param=name
            )
    highest = Priority.URGENT if caller.key is None else caller.key.max_priority
    priority = options.get("priority")
    if priority is None:
        priority = min(highest, next((each for most, each in PRIORITIES if minutes <= most), Priority.BATCH))
    elif isinstance(priority, str):
        priority = read_priority(priority)
    try:
        checked = Job.model_validate({**options, "priority": priority, "body": {}})
    except ValidationError as error:
        raise job_error(error) from error
    if "pool" in options and caller.pools is not None and checked.pool not in caller.pools:
        raise bad_request(
            f"pool: this API key may not use the pool {checked.pool!r}; it may use {', '.join(caller.pools)}",
            param="pool",
        )
    if checked.priority > highest:
        raise bad_request(
            f"priority: this API key may not use the priority {checked.priority}; its highest is {highest}",
            param="priority",
        )
    return {**options, "priority": checked.priority}


def _metadata(given: object) -> dict[str, str] | None:
    if given is None:
        return None
    try:
        return _METADATA.validate_python(given, strict=True)
    except ValidationError:
        raise bad_request(
            "metadata: must be an object with at most 16 members, whose names have at most 64 characters and "
            "whose values are strings of at most 512",
            param="metadata",
        ) from None


async def cancel_batch(gateway: Gateway, batch_id: str, caller: Caller) -> BatchRecord:
    """Cancel a batch of a caller. Raises ``RefusedError`` if it has ended, or there is none."""
    record = await find_batch(gateway, batch_id, caller)
    await gateway.batches.cancel(record.order.id)
    record = await find_batch(gateway, batch_id, caller)
    if record.state not in {BatchState.CANCELLING, BatchState.CANCELLED}:
        raise RefusedError(
            Refusal(
                status=HTTPStatus.CONFLICT,
                code="batch_not_cancellable",
                message=f"the batch is {record.state}, so it cannot be cancelled",
            )
        )
    gateway.new_batch.set()
    return record


async def find_batch(gateway: Gateway, batch_id: str, caller: Caller) -> BatchRecord:
    """Read a batch of a caller. Raises ``RefusedError`` if there is none, or no storage."""
    files_of(gateway)
    known, records = _ID.fullmatch(batch_id), gateway.batches
    record = await records.read(batch_id, tenant=caller.tenant) if known else None
    if record is None:
        raise not_found(f"there is no batch {batch_id[:64]!r}", code="batch_not_found")
    return record


def _described(record: BatchRecord) -> dict[str, Any]:
    order, progress = record.order, record.progress
    since = {f"{state}_at": _seconds(record.since_ms.get(state)) for state in BatchState}
    del since["validating_at"]
    data = [problem.model_dump() for problem in record.problems]
    tokens = progress.input_tokens + progress.output_tokens
    return {
        "id": order.id,
        "object": "batch",
        "endpoint": order.endpoint,
        "errors": {"object": "list", "data": data} if data else None,
        "input_file_id": order.input_file_id,
        "completion_window": order.completion_window,
        "status": record.state,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": _seconds(order.created_ms),
        "expires_at": _seconds(order.deadline_ms),
        **since,
        "request_counts": {
            "total": progress.total,
            "completed": progress.completed,
            "failed": progress.failed,
        },
        "usage": {
            "input_tokens": progress.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": progress.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens,
        },
        "metadata": order.metadata,
    }


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds // 1000
