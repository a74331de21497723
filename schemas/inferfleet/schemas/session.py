"""A session: an agent's conversation and its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import JobId, SessionId
from inferfleet.schemas.json_values import plain_json
from inferfleet.schemas.limits import LONGEST_S, MOST
from inferfleet.schemas.openai_messages import is_set
from inferfleet.schemas.problems import describe, kind
from inferfleet.schemas.result import Count, Usage
from inferfleet.schemas.said import CUT_SHORT, text_of
from inferfleet.schemas.wire_model import WireModel

_session_id: TypeAdapter[str] = TypeAdapter(SessionId)

IdleTtl = Annotated[int, Field(ge=1, le=LONGEST_S, strict=True)]
"""Seconds."""

HistoryTokens = Annotated[int, Field(ge=1, le=MOST, strict=True)]
"""Tokens."""


KEPT_FIELDS: Final = (
    "role",
    "content",
    "tool_calls",
    "refusal",
    "reasoning",
    "reasoning_content",
    "name",
    "audio",
)
"""The fields of an assistant's message that a history keeps. ``reasoning_content`` is an older name of
``reasoning``."""


class Turn(WireModel):
    """One turn: the new messages of a job and their answer, as OpenAI chat messages.

    ``tokens`` is how many prompt tokens the turn adds to later turns, as the engine counted them.
    """

    job_id: JobId
    messages: tuple[dict[str, Any], ...]
    at: AwareDatetime
    model: str = ""
    usage: Usage = Usage()
    tokens: Count = 0
    interrupted: bool = False


class SessionRecord(WireModel):
    """What is known of a session. ``owner`` is the job that may run now; ``waiting`` are those behind it."""

    id: SessionId
    turns: Count
    version: Count
    bytes: Count
    state_version: Count
    owner: JobId | None = None
    waiting: tuple[JobId, ...] = ()
    idle_ttl_s: Annotated[int, Field(ge=1)] | None = None
    max_history_tokens: Annotated[int, Field(ge=1)] | None = None
    created_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = None


class SessionExport(WireModel):
    """A whole session as one document. ``format`` is the version of the document."""

    format: Literal["inferfleet.session.v1"] = "inferfleet.session.v1"
    id: SessionId
    turns: tuple[Turn, ...]
    state: Any = None
    idle_ttl_s: IdleTtl | None = None
    max_history_tokens: HistoryTokens | None = None


class _Limits(WireModel):
    idle_ttl_s: IdleTtl | None
    max_history_tokens: HistoryTokens | None


def read_export(document: bytes | str) -> SessionExport:
    """Read an exported session.

    Raises:
        InvalidJobError: The text is not an exported session, or has an unknown version.

    """
    try:
        return SessionExport.model_validate_json(document)
    except ValidationError as error:
        raise InvalidJobError(f"not a session export: {describe(error, whole='the document')}") from None


def check_export(export: SessionExport) -> SessionExport:
    """Check a session to import, and return it as a worker will read it.

    Raises:
        InvalidJobError: The session breaks the contract; the message names the place.

    """
    state, _ = plain_json(export.state, "state")
    turns: list[Turn] = []
    for number, turn in enumerate(export.turns):
        place = f"turns[{number}]"
        said, _ = plain_json({"messages": turn.messages}, place)
        try:
            ENDPOINTS[Endpoint.CHAT].request.validate_python(said)
        except ValidationError as error:
            raise InvalidJobError(describe(error, root=place, data=said)) from None
        plain_json(turn.model, f"{place}.model")
        turns.append(turn.model_copy(update={"messages": tuple(said["messages"])}))
    return export.model_copy(update={"turns": tuple(turns), "state": state})


def check_limits(*, idle_ttl_s: int | None, max_history_tokens: int | None) -> None:
    """Refuse limits that no session may have.

    Raises:
        InvalidJobError: A limit is below 1, too high for Redis, or not an integer.

    """
    try:
        _Limits(idle_ttl_s=idle_ttl_s, max_history_tokens=max_history_tokens)
    except ValidationError as error:
        raise InvalidJobError(describe(error)) from None


def check_session_id(session_id: object) -> None:
    """Refuse an id that no session may have.

    Raises:
        InvalidJobError: The id is empty, too long, or has spaces or braces.

    """
    try:
        _session_id.validate_python(session_id)
    except ValidationError:
        given = ascii(session_id[:64]) if isinstance(session_id, str) else kind(session_id)
        raise InvalidJobError(
            f"{given} is not a session id: 1 to 128 characters without spaces and braces"
        ) from None


@dataclass(frozen=True, slots=True)
class History:
    """The part of a conversation that enters a prompt, and its size there in ``tokens``."""

    messages: tuple[dict[str, Any], ...]
    tokens: int


def history(
    turns: tuple[Turn, ...], *, max_tokens: int | None = None, new_messages: Sequence[Mapping[str, Any]] = ()
) -> History:
    """Return the history before ``new_messages``: all turns, or as many of the last as fit ``max_tokens``.

    Tool results, in a turn or among the new messages, always keep the turn that asked for them, even above
    the limit. The instructions (system and developer messages) at the beginning always stay.
    """
    first = 0
    instructions = _instructions(turns)
    if max_tokens is not None:
        last = len(turns)
        if new_messages and new_messages[0].get("role") == "tool":
            last = _beginning(turns)
        tokens = sum(turn.tokens for turn in turns)
        while first < last and (tokens > max_tokens or (first and continues(turns[first]))):
            tokens -= turns[first].tokens - (0 if first else instructions.tokens)
            first += 1
    kept = History(
        tuple(message for turn in turns[first:] for message in turn.messages),
        sum(turn.tokens for turn in turns[first:]),
    )
    if first:
        return History(instructions.messages + kept.messages, instructions.tokens + kept.tokens)
    return kept


def kept_answer(response: Mapping[str, Any]) -> dict[str, Any]:
    """Return the assistant's message of a chat's response as a history keeps it.

    Without text or calls, its text is empty.
    """
    choice: dict[str, Any] = response["choices"][0]
    message: dict[str, Any] = choice["message"]
    kept = {field: message[field] for field in KEPT_FIELDS if message.get(field)}
    # A call that was cut off cannot be run, and no later prompt can contain it.
    cut = choice.get("finish_reason") in {"length", CUT_SHORT}
    calls = [call for call in kept.pop("tool_calls", ()) if _is_whole(call, cut=cut)]
    return {**kept, "tool_calls": calls} if calls else {"role": "assistant", "content": "", **kept}


def with_answer(body: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the messages of a turn: those of its request and the answer ``said``.

    If the answer continues the request's last message (``continue_final_message``), both become one message,
    with or without ``echo``.
    """
    *before, last = body["messages"]
    if not (is_set(body.get("continue_final_message")) and last.get("role") == "assistant"):
        return (*before, last, dict(said))
    begun = text_of(last.get("content"))
    text = said.get("content") or ""
    if not (is_set(body.get("echo")) and text.startswith(begun)):
        text = begun + text
    return (*before, {**last, **said, "content": text})


def continues(turn: Turn) -> bool:
    """Return whether a turn begins with tool results, so that it needs the turn before it."""
    return bool(turn.messages) and turn.messages[0].get("role") == "tool"


def tool_problem(past: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what is wrong with tool results among new messages; ``None`` if each answers an earlier call."""
    expected: set[str] = set()
    for message in past:
        expected = _expected(expected, message)
    for position, message in enumerate(messages):
        call = message.get("tool_call_id")
        if message.get("role") == "tool" and call not in expected:
            wanted = ", ".join(sorted(expected)) or "none"
            return (
                f"body.messages[{position}]: a tool result for call {call!r}, which the session "
                f"does not wait for (unanswered calls: {wanted})"
            )
        expected = _expected(expected, message)
    return None


def estimated_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Estimate the tokens of messages: a quarter of their bytes as JSON, about right for English."""
    return sum(len(orjson.dumps(message)) for message in messages) // 4


def _is_whole(call: Mapping[str, Any], *, cut: bool) -> bool:
    if call.get("type") != "function":
        return True
    arguments: str = call["function"]["arguments"]
    if not arguments:
        # A call may have no arguments, or the answer ended before them.
        return not cut
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False


def _expected(expected: set[str], message: Mapping[str, Any]) -> set[str]:
    """Return the tool calls that still lack a result after one more message."""
    match message.get("role"):
        case "tool":
            return expected - {message.get("tool_call_id", "")}
        case "assistant":
            return {call["id"] for call in message.get("tool_calls") or ()}
        case _:
            return set()


def _instructions(turns: Sequence[Turn]) -> History:
    """Return the instructions of the first turn, with their share of its tokens by length."""
    if not turns:
        return History((), 0)
    first = turns[0].messages
    kept = tuple(message for message in first if message.get("role") in {"system", "developer"})
    share = estimated_tokens(kept) / max(1, estimated_tokens(first))
    return History(kept, round(turns[0].tokens * share))


def _beginning(turns: Sequence[Turn]) -> int:
    """Find where the last exchange begins: the turn that all later turns continue with tool results."""
    start = max(0, len(turns) - 1)
    while start > 0 and continues(turns[start]):
        start -= 1
    return start
