"""Puts the events of a server's stream together: chunks for the journal, and the response of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inferfleet.schemas import Usage
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.journal import TokenChunk
from inferfleet.schemas.said import Said
from inferfleet.worker.engines.openai.promised import NOT_WHOLE, counted, in_numbers, promised
from inferfleet.worker.ports import Generation

NO_ID: Final = -1
"""Stands for a token whose id the server does not return. The journal counts tokens by their ids."""

_IDS: Final = frozenset({"token_ids", "prompt_token_ids"})


@dataclass(slots=True)
class _Choice:
    """What the events of one choice have said. ``held`` is text that came without a token."""

    said: Said = field(default_factory=Said)
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    message: dict[str, Any] = field(default_factory=dict[str, Any])
    logprobs: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    held: str = ""


class StreamedAnswer:
    """An answer as it streams in. With ``token_ids`` the events have the ids of their tokens."""

    def __init__(self, generation: Generation, *, token_ids: bool) -> None:
        answer = ENDPOINTS[generation.endpoint].generated
        assert answer is not None  # noqa: S101 - others are not streamed
        self._object = answer.object
        self._chat = answer.object != answer.chunk_object
        self._with_ids = token_ids
        self._asked_for_ids = generation.body.get("return_token_ids") is True
        self._n = generation.body.get("n") or 1
        self._promised = promised(generation.endpoint, generation.body)
        self._told = Usage()
        self._ended: set[int] = set()
        self._goes_on = self._done = False
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._prompts: dict[int, int] = {}
        self._tokens = 0

    @property
    def prompt_tokens(self) -> int:
        """How many tokens all prompts have, as far as the server has said."""
        return self._told.prompt_tokens or sum(self._prompts.values())

    @property
    def ended(self) -> bool:
        """Whether every choice that was asked for has ended as it should."""
        return len(self._ended) == self._promised

    @property
    def fewer(self) -> bool:
        """Whether the server says that this is all, and some choices that were asked for have not begun."""
        return self._done and bool(self._ended) and self._ended == self._choices.keys() and not self.ended

    @property
    def whole(self) -> bool:
        """Whether nothing more can come. Some servers end a choice with each of its events."""
        return self.ended and not self._goes_on

    @property
    def progress(self) -> str:
        """How much of the answer is there."""
        return f"{len(self._ended)} of {self._promised} choices"

    @property
    def fingerprint(self) -> str | None:
        """Which model the server says it has, if it does."""
        return self._head.get("system_fingerprint")

    @property
    def usage(self) -> Usage:
        """What the server counted; if it did not, the events."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self._told.completion_tokens or self._tokens,
            cached_tokens=self._told.cached_tokens,
        )

    def done(self) -> None:
        """Take the server's word that the stream has ended."""
        self._done = True

    def take(self, event: Mapping[str, Any]) -> Iterator[TokenChunk]:
        """Take the next event, and yield its chunks. What it raises for a malformed one is ``understood``."""
        if event.get("usage"):
            self._told = counted(event)
        for name, value in event.items():
            if name not in {"choices", *_IDS} and value is not None:
                self._head[name] = value
        if (ids := event.get("prompt_token_ids")) is not None:
            self._prompts[0] = len(ids)
            if self._asked_for_ids:
                self._head["prompt_token_ids"] = ids
        for part in event.get("choices") or ():
            yield from self._take(part.get("index") or 0, part)

    def rest(self) -> Iterator[TokenChunk]:
        """Yield, at the end, text that came without a token, and tokens that came without an event."""
        for index, choice in self._choices.items():
            if choice.held:
                yield self._counted(TokenChunk(index=index, token_ids=(NO_ID,), text=choice.held))
        missing = self.usage.completion_tokens - self._tokens
        if missing > 0 and not self._with_ids:
            yield self._counted(TokenChunk(token_ids=(NO_ID,) * missing))

    def response(self) -> dict[str, Any]:
        """Return the response that the server would have made without a stream."""
        usage = in_numbers(self._head.get("usage") or {}, self.usage)
        choices = [self._response_of(index, choice) for index, choice in sorted(self._choices.items())]
        return {**self._head, "usage": usage, "object": self._object, "choices": choices}

    def _take(self, index: int, part: Mapping[str, Any]) -> Iterator[TokenChunk]:
        if index not in range(self._promised):
            raise ValueError("there is no such choice")
        choice = self._choices.setdefault(index, _Choice())
        for name, value in part.items():
            if value is None or name in {"index", "delta", "text", "logprobs"}:
                continue
            if name not in _IDS:
                choice.fields[name] = value
            elif self._asked_for_ids:
                choice.fields[name] = [*choice.fields.get(name, ()), *value]
        if (ids := part.get("prompt_token_ids")) is not None:
            self._prompts[index // self._n] = len(ids)
        logprobs: Mapping[str, list[Any] | None] = part.get("logprobs") or {}
        for name, values in logprobs.items():
            if values is not None:
                choice.logprobs.setdefault(name, []).extend(values)
        text, delta = self._words(choice, part)
        self._goes_on |= index in self._ended and bool(text or delta)
        if choice.fields.get("finish_reason") not in NOT_WHOLE:
            self._ended.add(index)
        token_ids = tuple(part.get("token_ids") or ())
        if not token_ids and (delta or (text and not self._with_ids)):
            token_ids = (NO_ID,)
        if token_ids:
            text, choice.held = choice.held + text, ""
            chunk = TokenChunk(index=index, token_ids=token_ids, text=text, delta=delta)
            choice.said.add(chunk)
            yield self._counted(chunk)
        else:
            choice.held += text

    def _words(self, choice: _Choice, part: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """Return the plain text of an event, and what else its ``delta`` says."""
        if not self._chat:
            return part.get("text") or "", None
        delta: Mapping[str, Any] = part.get("delta") or {}
        told = {name: value for name, value in delta.items() if value not in (None, [])}
        choice.message["role"] = told.pop("role", choice.message.get("role"))
        text: str = told.pop("content", "")
        for name, value in told.items():
            before = choice.message.get(name)
            choice.message[name] = before + value if isinstance(before, str) else value
        for place, call in enumerate(told.get("tool_calls") or ()):
            call.setdefault("index", place)
        if "reasoning_content" in told:
            # The name that other servers have for vLLM's reasoning.
            told.setdefault("reasoning", told["reasoning_content"])
        if not isinstance(told.get("reasoning", ""), str):
            raise TypeError("reasoning is text")
        return text, {name: value for name, value in told.items() if value != ""} or None

    def _response_of(self, index: int, choice: _Choice) -> dict[str, Any]:
        said = choice.said
        ended = {"finish_reason": None, **choice.fields, "logprobs": choice.logprobs or None}
        if not self._chat:
            return {"index": index, "text": said.text + choice.held, **ended}
        text, calls = said.text + choice.held, said.tool_calls
        message = {**choice.message, "content": text or (None if calls or said.reasoning else "")}
        if calls:
            message["tool_calls"] = calls
        return {"index": index, "message": message, **ended}

    def _counted(self, chunk: TokenChunk) -> TokenChunk:
        self._tokens += len(chunk.token_ids)
        return chunk
