"""What was told about one request, by vLLM's server or by a fleet, in a form that can be compared.

Left out is what differs between two calls of the same server: ids, times, and what a cache happened to hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from inferfleet.schemas.journal import TokenChunk

TOLERANCE: Final = 2e-3
"""Of two numbers that were computed in batches of different sizes."""


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    REFUSED_LATE = "accepted, and refused by the worker"
    FAILED = "failed"


@dataclass(slots=True)
class Streamed:
    """One choice, put together from its deltas."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)

    def add(self, delta: Mapping[str, Any]) -> None:
        """Take OpenAI's ``delta`` of a chat, but for its ``content``."""
        self.reasoning += delta.get("reasoning") or ""
        for part in delta.get("tool_calls") or ():
            call = self.calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += part.get("id") or ""
            call["name"] += (part.get("function") or {}).get("name") or ""
            call["arguments"] += (part.get("function") or {}).get("arguments") or ""

    def comparable(self) -> dict[str, Any]:
        """Everything but the ids, of which is told only whether they are there."""
        calls = [call | {"id": bool(call["id"])} for _, call in sorted(self.calls.items())]
        return {"text": self.text, "reasoning": self.reasoning, "tool_calls": calls}


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """``response`` is there when it was answered; ``streamed`` is ``None`` where there is no stream.

    ``events`` are those of the stream, where one was sent.
    """

    outcome: Outcome
    words: str = ""
    response: dict[str, Any] | None = None
    streamed: dict[int, Streamed] | None = None
    events: list[dict[str, Any]] | None = None

    def as_streamed(self) -> Telling:
        """What would be told if the messages of a chat's response were made from its stream."""
        assert self.response is not None
        assert self.streamed is not None
        response = deepcopy(self.response)
        for choice in response["choices"]:
            streamed, message = self.streamed[choice["index"]], choice["message"]
            # Whether there is no content or an empty one, a stream does not say.
            message["content"] = streamed.text or (message["content"] and "")
            message.pop("tool_calls", None)
            if streamed.calls:
                message["tool_calls"] = [
                    {"id": call.pop("id"), "type": "function", "function": call}
                    for _, call in sorted(deepcopy(streamed.calls).items())
                ]
        return replace(self, response=response)


def streamed_by_server(events: Iterable[dict[str, Any]]) -> dict[int, Streamed]:
    """Put the choices together from the events of a stream."""
    choices: dict[int, Streamed] = {}
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            streamed = choices.setdefault(choice["index"], Streamed())
            delta = choice.get("delta")
            streamed.text += (choice["text"] if delta is None else delta.get("content")) or ""
            streamed.add(delta or {})
            streamed.token_ids += choice.get("token_ids") or ()
    return choices


def streamed_by_fleet(chunks: Iterable[TokenChunk]) -> dict[int, Streamed]:
    """Put the choices together from the lines of a journal."""
    choices: dict[int, Streamed] = {}
    for chunk in chunks:
        streamed = choices.setdefault(chunk.index, Streamed())
        streamed.text += chunk.text
        streamed.add(chunk.delta or {})
        streamed.token_ids += chunk.token_ids
    return choices


_APART: Final = frozenset({"id", "created", "choices", "usage"})


def comparable_events(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the events of a stream into a form that two servers share, if they send the same.

    It leaves out where the text of a choice is cut into events, which the engine's load decides, and what
    ``deliberate.IN_EVENTS`` lists.
    """
    for name in ("id", "object", "created", "model"):
        assert len({event[name] for event in events}) == 1, f"{name} changes within a stream"
    choices: dict[int, _ChoiceEvents] = {}
    rest: dict[str, Any] = {}
    for event in map(_without_nulls, deepcopy(events)):
        said = [choices.setdefault(choice["index"], _ChoiceEvents()) for choice in event["choices"]]
        for each, choice in zip(said, event["choices"], strict=True):
            each.add(choice)
            if "usage" in event:
                each.usage = event["usage"]
        rest |= {name: value for name, value in event.items() if name not in _APART}
        if not event["choices"]:
            assert all(choice.ended for choice in choices.values()), "the usage is not at the end"
            rest["usage"] = {
                name: value for name, value in event["usage"].items() if name != "prompt_tokens_details"
            }
    return rest | {"choices": {str(index): each.comparable() for index, each in sorted(choices.items())}}


@dataclass(slots=True)
class _ChoiceEvents:
    """What the events of one choice say together."""

    said: Streamed = field(default_factory=Streamed)
    usage: dict[str, Any] | None = None
    ended: bool = False
    _begun: bool = False
    _once: dict[str, Any] = field(default_factory=dict)
    _logprobs: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, choice: dict[str, Any]) -> None:
        assert not self.ended, "a choice goes on behind its end"
        delta = choice.pop("delta", {})
        if (role := delta.pop("role", None)) is not None:
            assert not self._begun, "a role comes late"
            self._once["role"] = (role, delta.get("content"))
        self._begun = True
        self.ended = "finish_reason" in choice
        self.said.text += choice.pop("text", "") + delta.pop("content", "")
        self.said.add(delta)
        self.said.token_ids += choice.pop("token_ids", ())
        for name, values in choice.pop("logprobs", {}).items():
            self._logprobs.setdefault(name, []).extend(values)
        for name, value in choice.items():
            assert name == "index" or name not in self._once, f"{name} comes twice"
            self._once[name] = value

    def comparable(self) -> dict[str, Any]:
        made = {
            **self._once,
            **self.said.comparable(),
            "token_ids": self.said.token_ids,
            "usage": self.usage,
            "logprobs": self._logprobs,
        }
        _forget_ties(made)
        return made


def _without_nulls(event: dict[str, Any]) -> dict[str, Any]:
    """Leave out the members of an event and of its choices that are null, but no null in a list."""
    return {
        name: [_without_nulls(each) for each in value]
        if name == "choices"
        else _without_nulls(value)
        if isinstance(value, dict)
        else value
        for name, value in event.items()
        if value is not None
    }


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """List where two JSON values differ, one line each. Floats are allowed a little."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for name in sorted(ours.keys() | theirs.keys(), key=str):
            if name not in ours or name not in theirs:
                who = "theirs" if name in theirs else "ours"
                found.append(f"{path}.{name}: only {who} has it")
            else:
                found += differences(ours[name], theirs[name], f"{path}.{name}")
        return found
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return [f"{path}: ours has {len(ours)} items, theirs {len(theirs)}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for at, (one, other) in pairs for line in differences(one, other, f"{path}[{at}]")]
    if isinstance(ours, float) and isinstance(theirs, float):
        return [] if abs(ours - theirs) <= TOLERANCE else [f"{path}: ours {ours}, theirs {theirs}"]
    same = ours == theirs and type(ours) is type(theirs)
    return [] if same else [f"{path}: ours {ours!r:.200}, theirs {theirs!r:.200}"]


def comparable_response(response: dict[str, Any]) -> dict[str, Any]:
    """Leave out what no two answers share."""
    response = deepcopy(response)
    del response["id"]
    # A ranking has no time.
    response.pop("created", None)
    # How much of the prompt was cached depends on who asked before.
    response["usage"].pop("prompt_tokens_details", None)
    _untie(response.get("prompt_logprobs"))
    for choice in response.get("choices", ()):
        _forget_ties(choice)
        _untie(choice.get("prompt_logprobs"))
        for call in (choice.get("message") or {}).get("tool_calls") or ():
            call["id"] = bool(call["id"])
    return response


def _forget_ties(choice: dict[str, Any]) -> None:
    logprobs = choice.get("logprobs") or {}
    for entry in logprobs.get("content") or ():
        entry["top_logprobs"] = _distinct(top["logprob"] for top in entry["top_logprobs"])
    if logprobs.get("top_logprobs"):
        logprobs["top_logprobs"] = [top and _distinct(top.values()) for top in logprobs["top_logprobs"]]


def _untie(prompt_logprobs: list[Any] | None) -> None:
    known = prompt_logprobs or []
    for position, entry in enumerate(known):
        if entry:
            known[position] = _distinct(top["logprob"] for top in entry.values())


def _distinct(logprobs: Iterable[float]) -> list[float]:
    """Keep the values only: of tokens that are equally likely, and many are, any may be among the best."""
    values: list[float] = []
    for value in sorted(logprobs, reverse=True):
        if not values or values[-1] - value > TOLERANCE:
            values.append(value)
    return values
