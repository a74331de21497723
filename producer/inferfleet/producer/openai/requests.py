"""Reads a request to one of OpenAI's endpoints: which job it asks for, and how to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from inferfleet.producer.job_making import LATER, OPTIONS_MEMBER, JobOptions
from inferfleet.producer.openai.refusals import RefusedError, bad_request
from inferfleet.producer.openai.scanning import scan
from inferfleet.producer.tracing import trace_of_request
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.job import Priority
from inferfleet.schemas.limits import LONGEST_S
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.openai_messages import is_set
from inferfleet.schemas.problems import MAX_QUOTED_CHARS, describe, kind, not_a_choice

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

LARGE_BYTES: Final = 64 * 1024
"""A body that is larger is read in a thread."""

TIERS: Final[Mapping[str, Priority | None]] = {
    "auto": None,
    "default": Priority.NORMAL,
    "fast": Priority.HIGH,
    "flex": Priority.BATCH,
    "priority": Priority.HIGH,
    "scale": Priority.HIGH,
}
"""The priority of each of OpenAI's service tiers; ``auto`` asks for none."""

HEADERS: Final[Mapping[str, str]] = {
    "inferfleet-priority": "priority",
    "inferfleet-pool": "pool",
    "inferfleet-session": "session_id",
    "inferfleet-timeout": "timeout_s",
    "idempotency-key": "idempotency_key",
}
"""The headers that set an option of a job. They override the member ``inferfleet`` of the body."""

OPTIONS: Final = (
    "expires_at",
    "idempotency_key",
    "max_attempts",
    "metadata",
    "on_busy",
    "on_late",
    "pool",
    "priority",
    "retrieve",
    "session_id",
    "state_patch",
    "timeout_s",
)
"""The options of a job that a caller over HTTP may set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for: a job, and its answer as a stream or in one piece.

    The answer has to be complete within ``timeout_s``, counted from the request.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    options: JobOptions
    stream: bool
    timeout_s: float | None

    @property
    def named(self) -> bool:
        """Whether the caller can find the job again, by its idempotency key."""
        return "idempotency_key" in self.options


def read_request(endpoint: Endpoint, headers: Mapping[str, str], content: bytes) -> Asked:
    """Read a request. ``headers`` have lower-case names. The job itself is checked when it is submitted.

    Raises:
        RefusedError: The body is not a JSON object, or an option is unknown or invalid.

    """
    body = read_object(content)
    refuse_later(body)
    options = read_options(body.pop(OPTIONS_MEMBER, None), headers)
    tier = body.pop("service_tier", None)
    if tier is not None and "priority" not in options:
        set_priority(options, tier)
    stream = ENDPOINTS[endpoint].generated is not None and _is_set(body.get("stream"))
    options["endpoint"] = endpoint
    options["stream"] = stream
    return Asked(endpoint=endpoint, body=body, options=options, stream=stream, timeout_s=waits_for_s(options))


def set_priority(options: JobOptions, tier: object) -> None:
    """Set the priority for which one of OpenAI's service tiers asks.

    Raises:
        RefusedError: There is no such tier.

    """
    if not isinstance(tier, str) or tier not in TIERS:
        raise bad_request(f"service_tier: {not_a_choice(tier, ', '.join(TIERS))}", param="service_tier")
    if (priority := TIERS[tier]) is not None:
        options["priority"] = priority


def waits_for_s(options: JobOptions) -> float | None:
    """Return for how many seconds a caller waits; ``None`` if the options set no limit, or an invalid one."""
    timeout_s = options.get("timeout_s")
    return timeout_s if isinstance(timeout_s, (int, float)) and 0 < timeout_s <= LONGEST_S else None


async def apart(read: Callable[[], T], content: bytes) -> T:
    """Read a body, a large one in a thread: other requests go on meanwhile."""
    return await asyncio.to_thread(read) if len(content) > LARGE_BYTES else read()


def read_json(content: bytes) -> Any:
    """Read a body. Python's own parser would take NaN, and deeper values than it can handle.

    Raises:
        RefusedError: It is not JSON, or no reader would get an equal value.

    """
    for _ in scan(content):
        pass
    return parse(content)


def parse(content: bytes, what: str = "the body") -> Any:
    """Parse a body, or ``what`` is a part of it, that ``scan`` has let pass.

    Raises:
        RefusedError: It is not JSON.

    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"{what} is not JSON: {error.msg} at character {error.pos}") from None


def read_object(content: bytes) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        RefusedError: It is not.

    """
    body = read_json(content)
    if not isinstance(body, dict):
        raise bad_request(f"the body must be an object, not {kind(body)}")
    return cast("dict[str, Any]", body)


def read_model(model: type[Model], body: Mapping[str, Any]) -> Model:
    """Read a body into its model.

    Raises:
        RefusedError: A member is invalid; ``param`` names it.

    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problem = describe(error, data=body, whole="the body")
        raise bad_request(problem, param=problem.partition(":")[0]) from None


def unknown_member(
    name: str, members: Iterable[str], *, place: str = "", do: str = "leave it out"
) -> RefusedError:
    """Make the error for a member that a request does not have at ``place``; it says what to ``do``."""
    quoted = name[:MAX_QUOTED_CHARS]
    return bad_request(
        f"{place}{quoted}: is not a member of this request{did_you_mean(quoted, members)}; {do}",
        param=f"{place}{quoted}",
    )


def refuse_later(given: Mapping[str, Any], place: str = "") -> None:
    """Refuse what only a job may have that nobody waits for.

    Raises:
        RefusedError: A member says that the job starts later.

    """
    for name in LATER:
        if name in given:
            raise bad_request(
                f"{place}{name}: this request starts at once; to start a job later, use POST /v1/jobs",
                param=f"{place}{name}",
            )


def read_endpoint(given: object, place: str = "") -> Endpoint:
    """Read the member ``endpoint`` of a request, itself or at ``place``.

    Raises:
        RefusedError: It is none of them.

    """
    try:
        return Endpoint(cast("str", given))
    except ValueError:
        name = f"{place}endpoint"
        raise bad_request(f"{name}: {not_a_choice(given, ', '.join(Endpoint))}", param=name) from None


def check_members(given: Iterable[str], members: Iterable[str], place: str = "") -> None:
    """Refuse a request that has a member which nobody would read, itself or at ``place``.

    Raises:
        RefusedError: There is one; the message names all that there are.

    """
    members = tuple(members)
    for name in given:
        if name not in members:
            raise unknown_member(name, members, place=place, do=f"there are {', '.join(members)}")


def read_options(given: object, headers: Mapping[str, str]) -> JobOptions:
    """Read the options of a job from a member of the body and from headers, and the trace of the request.

    Raises:
        RefusedError: An option is unknown, or not of its type.

    """
    if given is not None and not isinstance(given, dict):
        raise bad_request(f"{OPTIONS_MEMBER}: must be an object, not {kind(given)}", param=OPTIONS_MEMBER)
    options = {**cast("dict[str, Any]", given or {})}
    refuse_later(options, f"{OPTIONS_MEMBER}.")
    for name in options:
        if name not in OPTIONS:
            raise bad_request(
                f"{OPTIONS_MEMBER}.{name}: is not an option of a job{did_you_mean(name, OPTIONS)}; there are "
                f"{', '.join(OPTIONS)}",
                param=f"{OPTIONS_MEMBER}.{name}",
            )
    options |= {name: headers[header] for header, name in HEADERS.items() if header in headers}
    if not isinstance(pool := options.get("pool"), str | None):
        # Before the job is checked, the model's pool is looked up.
        raise bad_request(f"pool: must be a string, not {kind(pool)}", param="pool")
    if isinstance(timeout_s := options.get("timeout_s"), str):
        options["timeout_s"] = _seconds(timeout_s)
    given_options = {name: value for name, value in options.items() if value is not None}
    return cast("JobOptions", {**given_options, **trace_of_request(headers)})


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise bad_request("timeout_s: must be a number of seconds", param="timeout_s") from None


def _is_set(flag: object) -> bool:
    try:
        return is_set(flag)
    except ValidationError:
        # The check of the whole body says what is wrong.
        return False
