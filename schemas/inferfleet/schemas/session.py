"""A session: an agent's conversation and its state, one turn after the other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from inferfleet.schemas.job import JobId, SessionId
from inferfleet.schemas.result import Count, Usage
from inferfleet.schemas.wire_model import WireModel


class Turn(WireModel):
    """One exchange: the new messages of a job and the answer to them, as OpenAI chat messages.

    ``tokens`` is how many tokens of prompt the turn adds to later ones, as the engine counted them.
    """

    job_id: JobId
    messages: tuple[dict[str, Any], ...]
    at: AwareDatetime
    model: str = ""
    usage: Usage = Usage()
    tokens: Count = 0
    interrupted: bool = False


class SessionRecord(WireModel):
    """What is known of a session. ``owner`` is the job whose turn it is; ``waiting`` are those behind it."""

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
    """A whole session as one document. ``format`` names its version."""

    format: Literal["inferfleet.session.v1"] = "inferfleet.session.v1"
    id: SessionId
    turns: tuple[Turn, ...]
    state: Any = None
    idle_ttl_s: int | None = None
    max_history_tokens: int | None = None


def history(turns: tuple[Turn, ...], *, max_tokens: int | None = None) -> tuple[dict[str, Any], ...]:
    """The messages of turns as a prompt's history; the oldest whole turns are left out to fit ``max_tokens``.

    A turn that begins with tool results is never kept without the turn that asked for them, and the
    instructions (system and developer messages) at the beginning always stay.
    """
    first = 0
    if max_tokens is not None:
        total = sum(turn.tokens for turn in turns)
        while first < len(turns) and (total > max_tokens or (first and _answers_tools(turns[first]))):
            total -= turns[first].tokens
            first += 1
    kept = [message for turn in turns[first:] for message in turn.messages]
    if first:
        kept[:0] = [
            message for message in turns[0].messages if message.get("role") in {"system", "developer"}
        ]
    return tuple(kept)


def unanswered_tool_calls(messages: tuple[dict[str, Any], ...]) -> frozenset[str]:
    """The ids of the tool calls at the end of a history that no tool message has answered."""
    answered: set[str] = set()
    for message in reversed(messages):
        if message.get("role") == "tool":
            answered.add(message.get("tool_call_id", ""))
        elif message.get("role") == "assistant":
            return frozenset(call["id"] for call in message.get("tool_calls") or ()) - answered
        else:
            break
    return frozenset()


def _answers_tools(turn: Turn) -> bool:
    return bool(turn.messages) and turn.messages[0].get("role") == "tool"
