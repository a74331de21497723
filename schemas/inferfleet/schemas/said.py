"""Puts the chunks of a stream together to what an answer has said so far.

The complete response, the partial response of an answer that was cut short, and a reader's view of the stream
are all made here. So they agree, down to the ids of tool calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.journal import AnswerHead, TokenChunk

CUT_SHORT = "abort"
"""The ``finish_reason`` of an answer that was stopped from outside, as vLLM calls it."""

_TEXT_PARTS: Final[Mapping[str, str]] = {
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "text": "text",
    "thinking": "thinking",
}
"""The kinds of parts that vLLM reads as text, each with the field that has the text."""


class Said:
    """What one choice of an answer has said."""

    def __init__(self, chunks: Iterable[TokenChunk] = ()) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        for chunk in chunks:
            self.add(chunk)

    def add(self, chunk: TokenChunk) -> None:
        """Take the next chunk of the choice."""
        self._text.append(chunk.text)
        if chunk.delta is None:
            return
        self._reasoning.append(chunk.delta.get("reasoning") or "")
        for part in chunk.delta.get("tool_calls") or ():
            call = self._calls.setdefault(
                part["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = part.get("id") or call["id"]
            function: dict[str, str | None] = part.get("function") or {}
            for field, piece in function.items():
                call["function"][field] = call["function"].get(field, "") + (piece or "")

    @property
    def text(self) -> str:
        """The plain text."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning, if the engine separates it from the answer."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls, of which the last may be incomplete."""
        return [self._calls[index] for index in sorted(self._calls)]

    def agrees_with(self, other: Said) -> bool:
        """Return whether both said the same. The random ids of tool calls may differ."""
        return (self.text, self.reasoning, [call["function"] for call in self.tool_calls]) == (
            other.text,
            other.reasoning,
            [call["function"] for call in other.tool_calls],
        )

    def message(self) -> dict[str, Any]:
        """Make the assistant's message of a chat."""
        text, reasoning, calls = self.text, self.reasoning, self.tool_calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or (None if reasoning or calls else ""),
        }
        if reasoning:
            message["reasoning"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """Return the text of a message that an answer continues, with its parts joined as vLLM does."""
    if isinstance(content, list):
        return "\n".join(text for part in content if (text := text_of_part(part)))
    return content or ""


def text_of_part(part: Mapping[str, Any]) -> str | None:
    """Return the text of a part of a message: empty if it has none, ``None`` if the part is not text."""
    field = _TEXT_PARTS.get(part.get("type", ""))
    return None if field is None else part.get(field) or ""


def shown_text(content: object) -> str:
    """Return the content of a message as text for a person: a part that is not text is named, not quoted."""
    if not isinstance(content, list):
        return str(content or "")
    parts = cast("Sequence[Mapping[str, Any] | str]", content)
    return "\n".join(
        part if isinstance(part, str) else (text_of_part(part) or f"[{part.get('type', 'part')}]")
        for part in parts
    )


def cut_response(
    job_id: str, head: AnswerHead, chunks: Iterable[TokenChunk], *, created: int
) -> dict[str, Any]:
    """Make the response of an answer that was cut short, from its chunks."""
    return text_response(job_id, head, chunks, created=created, finish_reason=CUT_SHORT)


def text_response(
    job_id: str, head: AnswerHead, chunks: Iterable[TokenChunk], *, created: int, finish_reason: str
) -> dict[str, Any]:
    """Make the response of a chat or completion from the chunks of its answer.

    The response has each choice that had begun, at least the first, all with the same finish reason, and no
    logprobs. ``created`` is in Unix seconds.
    """
    choices: defaultdict[int, Said] = defaultdict(Said, {0: Said()})
    tokens = 0
    for chunk in chunks:
        choices[chunk.index].add(chunk)
        tokens += len(chunk.token_ids)
    answer = ENDPOINTS[head.endpoint].generated
    assert answer is not None  # noqa: S101 - what is not generated has no tokens, and is not cut
    return {
        "id": f"{answer.id_prefix}-{job_id}",
        "object": answer.object,
        "created": created,
        "model": head.model,
        "choices": [
            {
                "index": index,
                **answer.choice(said),
                "logprobs": None,
                "finish_reason": finish_reason,
            }
            for index, said in sorted(choices.items())
        ],
        "usage": {
            "prompt_tokens": head.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": head.prompt_tokens + tokens,
        },
    }
