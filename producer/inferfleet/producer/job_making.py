"""Makes a job that keeps the contract from what a caller passes."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypedDict, TypeVar, cast
from urllib.parse import quote

from pydantic import ValidationError

from inferfleet.producer.tracing import current_trace
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint, session_problem
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import (
    DEFAULT_TENANT,
    MAX_DELAY,
    MAX_SESSION_ID_CHARS,
    Job,
    OnBusy,
    OnLate,
    Priority,
    schedule_problem,
)
from inferfleet.schemas.json_values import plain_json
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.passages import Retrieve, passages_problem
from inferfleet.schemas.predecessors import after_problem, prompt_problem
from inferfleet.schemas.problems import kind
from inferfleet.schemas.request import check_request, job_error
from inferfleet.schemas.request_members import warn_of_misspelt_members

T = TypeVar("T")

_JSON: Final = ("body", "state_patch", "metadata")

_MOMENTS: Final = ("not_before", "expires_at", "submitted_at")

SESSION_MARK: Final = "@"
"""How the stored ids of tenants' sessions begin: ``@acme/chat`` is what ``acme`` calls ``chat``."""

_MINUTE: Final = timedelta(minutes=1)


LATER: Final = ("after", "delay_s", "not_before")
"""The options of a job that starts later. A request that waits for its answer has none of them."""

OPTIONS_MEMBER: Final = "inferfleet"
"""The member of a request of OpenAI's that holds options of its job: what the SDK's ``extra_body`` is for."""

PROMPT_OPTIONS: Final = frozenset({"model", "max_tokens", "temperature", "system"})
"""The options that go into the body which is made of a prompt."""


class JobOptions(TypedDict, total=False):
    """The options of a job besides its body: fields of ``Job``, and some members of a prompt's body.

    ``priority`` is 0 to 9, or the name of a ``Priority``, like ``"urgent"``. ``delay_s`` is ``not_before``
    in seconds from now. ``after`` are jobs, or their ids. ``model``, ``max_tokens``, ``temperature`` and
    ``system``, a chat's system message, are only for a prompt: a whole body has them itself. ``traceparent``
    and ``tracestate`` are a W3C Trace Context; without them a job belongs to the current span of
    OpenTelemetry, if there is one.
    """

    id: str
    endpoint: Endpoint | str
    pool: str
    priority: int | str
    session_id: str | None
    on_busy: OnBusy | str
    instructions: str | None
    state_patch: dict[str, Any] | None
    retrieve: Mapping[str, Any] | Retrieve | None
    stream: bool
    not_before: datetime | None
    delay_s: float | None
    after: Sequence[str | Job] | None
    expires_at: datetime | None
    on_late: OnLate | str
    timeout_s: float | None
    max_attempts: int
    idempotency_key: str | None
    tenant: str
    metadata: dict[str, str]
    traceparent: str | None
    tracestate: str | None
    model: str
    max_tokens: int
    temperature: float
    system: str


def make_job(
    work: str | Mapping[str, Any] | Job,
    options: JobOptions,
    *,
    max_body_bytes: int,
    now: datetime | None = None,
) -> Job:
    """Make a job from a prompt, a request body or another job, and check it.

    ``now`` becomes its ``submitted_at``, unless the caller sets that; without ``now`` the submission sets it.

    Raises:
        InvalidJobError: The job breaks the contract; the message names each field and what is allowed.

    """
    if misspelt := options.keys() - JobOptions.__annotations__.keys():
        known = JobOptions.__annotations__
        spelt = ", ".join(repr(name) + did_you_mean(name, known) for name in sorted(misspelt))
        raise TypeError(f"a job has no option {spelt}")
    fields: dict[str, Any] = {} if now is None else {"submitted_at": now}
    of_prompt: dict[str, Any] = {name: value for name, value in options.items() if name in PROMPT_OPTIONS}
    if of_prompt and not isinstance(work, str | Mapping | Job):  # pyright: ignore[reportUnnecessaryIsInstance]
        # For callers without a type checker.
        raise InvalidJobError(f"body: must be an object, not {kind(work)}")
    if of_prompt and not isinstance(work, str):
        raise InvalidJobError(
            f"{', '.join(of_prompt)}: only for a prompt; a whole body or job has its own, so set it there"
        )
    if isinstance(work, Job):
        said = dict(work)
        if "submitted_at" not in work.model_fields_set:
            del said["submitted_at"]
        fields |= {**said, **options}
    else:
        endpoint = _endpoint(options.get("endpoint", Endpoint.CHAT))
        fields |= {**options, "endpoint": endpoint, "body": _body(work, endpoint)}
    if (delay_s := fields.pop("delay_s", None)) is not None:
        fields["not_before"] = _after(delay_s, fields.get("not_before"), now)
    if isinstance(after := fields.get("after"), Job):
        raise InvalidJobError("after: must be a list, not a Job; put it into a list")
    if isinstance(after, Iterable) and not isinstance(after, str | bytes | Mapping):
        fields["after"] = (
            tuple(it.id if isinstance(it, Job) else it for it in cast("Iterable[object]", after)) or None
        )
    if isinstance(retrieve := fields.get("retrieve"), Mapping):
        _check_names(cast("Mapping[str, Any]", retrieve))
    tenant, session_id = fields.get("tenant", DEFAULT_TENANT), fields.get("session_id")
    # Anything else is refused with the job.
    if isinstance(tenant, str) and isinstance(session_id, str) and tenant != DEFAULT_TENANT:
        fields["session_id"] = stored_session(session_id, tenant)
    _set_trace(fields, options)
    if of_prompt:
        _extend(fields, of_prompt)
    if isinstance(priority := fields.get("priority"), str):
        fields["priority"] = read_priority(priority)
    sizes = _make_plain(fields)
    try:
        job = Job.model_validate(fields)
    except ValidationError as error:
        raise job_error(error, data=fields) from error
    if job.session_id is not None and (problem := session_problem(job.endpoint)):
        raise InvalidJobError(problem)
    if problem := schedule_problem(job) or after_problem(job):
        raise InvalidJobError(problem)
    # A whole body may be made of anybody's words, or be that of a job that has its texts already.
    if isinstance(work, str) and (problem := prompt_problem(job)):
        raise InvalidJobError(problem)
    if now is not None and job.not_before is not None and job.not_before > now + MAX_DELAY:
        raise InvalidJobError(
            f"not_before: {job.not_before.isoformat()} is more than {MAX_DELAY.days} days from now, which is "
            "the limit; submit the job later"
        )
    if job.on_late is OnLate.REJECT and job.expires_at is None:
        raise InvalidJobError("on_late: only a job with expires_at can be late; set that, too")
    if job.on_busy is not OnBusy.ENQUEUE and job.session_id is None:
        raise InvalidJobError("on_busy: only a session can be busy; set session_id, too")
    if job.instructions:
        if job.session_id is None:
            raise InvalidJobError(
                "instructions: only a turn of a session may have them; put a system message into the body"
            )
        sizes["instructions"] = len(job.instructions.encode())
    check_request(job.endpoint, job.body, max_body_bytes=max_body_bytes, size=sizes["body"])
    if job.passages is not None and job.retrieve is None:
        raise InvalidJobError("passages: only for a job with retrieve; put the text into the body")
    if job.retrieve is not None and (problem := passages_problem(job.endpoint, job.body)):
        raise InvalidJobError(problem)
    if len(sizes) > 1 and (size := sum(sizes.values())) > max_body_bytes:
        raise InvalidJobError(
            f"{', '.join(sizes)} are {size:,} bytes together; the limit is {max_body_bytes:,} "
            "(INFERFLEET_MAX_BODY_BYTES)"
        )
    if job.state_patch is not None and job.session_id is None:
        raise InvalidJobError("state_patch: only a session has a state; set session_id, too")
    warn_of_misspelt_members(job.body)
    return job


def _after(delay_s: object, not_before: object, now: datetime | None) -> datetime:
    """Return the time that is so many seconds from now."""
    if not_before is not None:
        raise InvalidJobError("delay_s: is another way to say not_before; give one of them")
    number = isinstance(delay_s, int | float) and not isinstance(delay_s, bool)
    seconds = cast("float", delay_s) if number else -1.0
    if not 0 <= seconds <= MAX_DELAY.total_seconds():
        raise InvalidJobError(
            f"delay_s: {reprlib.repr(delay_s)} is not a number of seconds from 0 to "
            f"{MAX_DELAY.total_seconds():.0f}, which are {MAX_DELAY.days} days"
        )
    return (now or datetime.now(UTC)) + timedelta(seconds=seconds)  # noqa: TID251 - only for jobs made offline


def session_prefix(tenant: str) -> str:
    """Return how the stored ids of a tenant's sessions begin; a ``/`` in its name is quoted."""
    return f"{SESSION_MARK}{quote(tenant, safe='', errors='replace')}/"


def stored_session(session_id: str, tenant: str) -> str:
    """Return the id under which a session of a tenant is stored; a stored one stays as it is.

    Raises:
        InvalidJobError: The id is too long.

    """
    prefix = session_prefix(tenant)
    if not session_id or session_id.startswith(prefix):
        return session_id
    if len(session_id) > (most := MAX_SESSION_ID_CHARS - len(prefix)):
        raise InvalidJobError(
            f"session_id: has {len(session_id)} characters; at most {most} are allowed for this tenant"
        )
    return prefix + session_id


def read_priority(text: str) -> int:
    """Read a priority: a name or a number from 0 to 9.

    Raises:
        InvalidJobError: It is neither.

    """
    if text.upper() in Priority.__members__:
        return Priority[text.upper()]
    if text.isascii() and text.isdecimal() and int(text) <= 9:
        return int(text)
    names = ", ".join(f"{priority.name.lower()} ({priority})" for priority in Priority)
    raise InvalidJobError(f"priority: {text!r} is neither a number from 0 to 9 nor one of {names}")


def several(items: Iterable[T], *, name: str) -> Iterable[T]:
    """Return the items of a list. Raise ``InvalidJobError`` if it is a single item.

    Python would take each character of a text, and each member of a body, for an item.
    """
    single = isinstance(items, str | bytes | Job)
    if single or (name == "work" and isinstance(items, Mapping)):
        given = kind(cast("object", items))
        raise InvalidJobError(f"{name}: must be a list, not {given}; put it into a list")
    return items


def check_pool(pool: str) -> None:
    """Raise ``InvalidJobError`` if no pool may have this name."""
    if isinstance(pool, bytes):
        # Pydantic would take it for a string.
        raise InvalidJobError(f"pool: must be a string, not {kind(pool)}")
    try:
        Job(pool=pool, body={})
    except ValidationError as error:
        raise job_error(error) from error


def _make_plain(fields: dict[str, Any]) -> dict[str, int]:
    """Replace each JSON value by what a worker will read. Return each value's length in bytes."""
    sizes: dict[str, int] = {}
    for name in _JSON:
        value = fields.get(name)
        if value is None or (not value and name != "body"):
            continue
        if not isinstance(value, dict):
            if not isinstance(value, Mapping):
                continue
            value = dict(cast("Mapping[str, Any]", value))
        fields[name], sizes[name] = plain_json(value, name)
    for name in _MOMENTS:
        moment = fields.get(name)
        if isinstance(moment, int | float | str) and _is_number(moment):
            # Pydantic would take it for seconds, or milliseconds, since 1970.
            raise InvalidJobError(f"{name}: must be a time with its time zone, such as 2026-01-31T12:00:00Z")
        if moment is None or not isinstance(moment, datetime) or moment.tzinfo is UTC:
            continue
        if (offset := moment.utcoffset()) and offset % _MINUTE:
            # ISO 8601 has no seconds in an offset.
            with suppress(OverflowError):
                fields[name] = moment.astimezone(UTC)
    return sizes


def _is_number(value: float | str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _check_names(retrieve: Mapping[str, Any]) -> None:
    """Refuse misspelt members, which would be ignored."""
    for name in retrieve.keys() - Retrieve.model_fields.keys():
        raise InvalidJobError(
            f"retrieve.{name[:64]}: is not a member{did_you_mean(name[:64], Retrieve.model_fields)}; there "
            f"are {', '.join(Retrieve.model_fields)}"
        )


def _set_trace(fields: dict[str, Any], options: JobOptions) -> None:
    """Take the trace from the options, or else from the job, or else from the current span."""
    if options.get("tracestate") and not options.get("traceparent"):
        raise InvalidJobError("tracestate: belongs to a traceparent; give that, too")
    if "traceparent" in options:
        fields["tracestate"] = options.get("tracestate")
    elif not fields.get("traceparent") and (trace := current_trace()):
        fields |= {"tracestate": None, **trace}


def _extend(fields: dict[str, Any], of_prompt: dict[str, Any]) -> None:
    """Move the options of a prompt into the body that was made of it."""
    endpoint: Endpoint = fields["endpoint"]
    body: dict[str, Any] = fields["body"]
    if ENDPOINTS[endpoint].generated is None and (generating := of_prompt.keys() - {"model"}):
        raise InvalidJobError(f"{', '.join(sorted(generating))}: {endpoint} generates no text; leave it out")
    for name, value in of_prompt.items():
        del fields[name]
        if name != "system":
            body[name] = value
        elif endpoint is Endpoint.CHAT:
            body["messages"].insert(0, {"role": "system", "content": value})
        else:
            raise InvalidJobError(f"system: {endpoint} has no system message; put it into the prompt")


def _endpoint(name: str) -> Endpoint:
    try:
        return Endpoint(name)
    except ValueError as error:
        raise InvalidJobError(f"endpoint: {name!r} is not one of {', '.join(Endpoint)}") from error


def _body(work: str | Mapping[str, Any], endpoint: Endpoint) -> object:
    if isinstance(work, Mapping):
        return dict(work)
    if not isinstance(work, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        # For callers without a type checker: ``Job`` reports what is wrong.
        return work
    ask = ENDPOINTS[endpoint].ask
    if ask is None:
        raise InvalidJobError(f"body: {endpoint} needs more than a prompt; give the whole body")
    if endpoint is Endpoint.CHAT and not work:
        # vLLM answers an empty message, but an empty string is more likely a variable that is not set.
        raise InvalidJobError(
            "body.messages[0].content: is empty; to ask an empty question, give the whole body"
        )
    return ask(work)
