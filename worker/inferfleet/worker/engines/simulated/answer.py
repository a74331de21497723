"""The whole answer, which is known before the first token, and how it is cut into chunks.

Token k depends only on the prompt and k, and the visible text after k tokens only on those k tokens. So it
makes no difference how often, or where, an answer is interrupted and resumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.engines.simulated.prompt import Prompt
from inferfleet.worker.engines.simulated.refusal import prompt_too_long
from inferfleet.worker.engines.simulated.request import SimulatedRequest
from inferfleet.worker.engines.simulated.vocabulary import PIECES, Detokenizer, decode, token_ids
from inferfleet.worker.ports import NotContinuableError

_SHORTEST_ANSWER: Final = 8
_ANSWER_LENGTHS: Final = 57
_TOOL_CALL_TOKENS: Final = 8
LOST_WEIGHTS: Final = -1
"""The weights of a model that says one token over and over."""
_ARGUMENTS: Final = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole choice. An earlier attempt has generated the first ``resumed`` of ``token_ids``.

    ``echoed`` precedes ``text``. ``held_back`` is how many characters a chunk holds back, because they may
    begin a stop string.
    """

    token_ids: tuple[int, ...]
    resumed: int
    text: str
    finish_reason: str
    echoed: str = ""
    held_back: int = 0
    tool_call: dict[str, Any] | None = None


def plan_answers(
    request: SimulatedRequest,
    *,
    max_model_len: int,
    weights: int = 0,
    resume_token_ids: tuple[int, ...] = (),
) -> list[Answer]:
    """Make every choice of the answer, ``n`` for each prompt; none if no text is generated.

    Raises:
        GenerationError: A prompt leaves no room for an answer, or the tokens to resume from are not this
            engine's.

    """
    for prompt in request.prompts:
        # vLLM, too, refuses a prompt of exactly that length.
        if prompt.tokens >= max_model_len:
            raise prompt_too_long(prompt.tokens, max_model_len=max_model_len)
    if ENDPOINTS[request.endpoint].generated is None:
        return []
    if resume_token_ids and not 0 <= min(resume_token_ids) <= max(resume_token_ids) < len(PIECES):
        raise NotContinuableError("its tokens are not of this engine's vocabulary")
    return [
        _plan(
            request,
            prompt,
            _choice_key(prompt, choice, weights),
            max_model_len - prompt.tokens,
            resume_token_ids,
            lost=weights == LOST_WEIGHTS,
        )
        for prompt in request.prompts
        for choice in range(request.n)
    ]


def _plan(
    request: SimulatedRequest,
    prompt: Prompt,
    key: bytes,
    room: int,
    resumed: tuple[int, ...],
    *,
    lost: bool,
) -> Answer:
    allowed = room if request.max_tokens is None else min(request.max_tokens, room)
    if request.forced_tool is not None:
        return _plan_tool_call(request, key, min(allowed, _TOOL_CALL_TOKENS))
    if request.ignore_eos:
        natural = allowed
    else:
        natural = request.hooks.tokens or _SHORTEST_ANSWER + key[0] % _ANSWER_LENGTHS
    length = min(natural, allowed)
    ids = tuple(token_ids(key, length))
    if lost:
        ids = ids[:1] * length
    if resumed:
        ids = (resumed + ids[len(resumed) :])[:length]
    text = decode(ids)
    stopped = natural < allowed
    stop_at = _first_stop(text, request.stop)
    if stop_at is not None:
        start, end = stop_at
        ids, text, stopped = ids[: _tokens_until(ids, end)], text[:start], True
    return Answer(
        token_ids=ids,
        resumed=min(len(resumed), len(ids)),
        text="" if request.echo_only else text,
        finish_reason="stop" if stopped else "length",
        echoed=prompt.text if request.echo else "",
        held_back=max(map(len, request.stop), default=1) - 1,
    )


def _plan_tool_call(request: SimulatedRequest, key: bytes, length: int) -> Answer:
    """Make a call without arguments, or its first tokens.

    Its finish reason is OpenAI's: ``stop`` if the caller named the tool, ``length`` if the call was cut.
    """
    whole = length == _TOOL_CALL_TOKENS
    return Answer(
        token_ids=tuple(token_ids(key, length)),
        resumed=0,
        text="",
        finish_reason="length" if not whole else "tool_calls" if request.tool_required else "stop",
        tool_call={
            "id": f"call_{key[:12].hex()}",
            "type": "function",
            "function": {"name": request.forced_tool, "arguments": _ARGUMENTS},
        },
    )


def _choice_key(prompt: Prompt, choice: int, weights: int) -> bytes:
    if choice == 0 and weights == 0:
        return prompt.key
    drawn = choice.to_bytes(4, "big") + (str(weights).encode() if weights else b"")
    return hashlib.blake2b(drawn, key=prompt.key, digest_size=32).digest()


def _first_stop(text: str, stop: tuple[str, ...]) -> tuple[int, int] | None:
    """Find the stop string that is complete first, as (start, end). vLLM breaks ties by list order."""
    found = [(start, start + len(string)) for string in stop if (start := text.find(string)) >= 0]
    return min(found, key=lambda span: span[1], default=None)


def _tokens_until(ids: tuple[int, ...], length: int) -> int:
    """Count the tokens after which at least ``length`` characters are complete."""
    detokenizer = Detokenizer()
    for count, id_ in enumerate(ids, start=1):
        length -= len(detokenizer.feed((id_,)))
        if length <= 0:
            return count
    return len(ids)


def _tool_call_delta(call: dict[str, Any], before: int, position: int) -> dict[str, Any] | None:
    """Return what the tokens from ``before`` to ``position`` add to a call: its name, then its arguments."""
    arguments = _arguments_after(position)[len(_arguments_after(before)) :]
    if before == 0:
        function = {**call["function"], "arguments": arguments}
        return {"tool_calls": [{"index": 0, **call, "function": function}]}
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]} if arguments else None


def _arguments_after(tokens: int) -> str:
    return _ARGUMENTS[: max(0, tokens - _TOOL_CALL_TOKENS + len(_ARGUMENTS))]


class AnswerCutter:
    """Cuts one answer into chunks that join to its text, beginning after the resumed tokens."""

    def __init__(self, answer: Answer, *, index: int) -> None:
        self._answer = answer
        self._index = index
        self._detokenizer = Detokenizer()
        self._position = answer.resumed
        self._complete = len(self._detokenizer.feed(answer.token_ids[: answer.resumed]))
        self._said = self._visible()

    @property
    def position(self) -> int:
        """How many tokens of the answer were yielded, including the resumed ones."""
        return self._position

    def cut(self, position: int) -> TokenChunk:
        """Return the tokens from the last cut up to ``position``, with the text that they make visible."""
        ids = self._answer.token_ids[self._position : position]
        before, self._position = self._position, position
        if self._answer.tool_call is not None:
            delta = _tool_call_delta(self._answer.tool_call, before, position)
            return TokenChunk(index=self._index, token_ids=ids, delta=delta)
        ended = position == len(self._answer.token_ids)
        if not ended:
            self._complete += len(self._detokenizer.feed(ids))
        visible = self._visible()
        text, self._said = self._answer.text[self._said : visible], visible
        echoed = "" if before else self._answer.echoed
        return TokenChunk(index=self._index, token_ids=ids, text=echoed + text)

    def _visible(self) -> int:
        """Count the characters that may be shown: all at the end, before it without the held-back ones."""
        whole = len(self._answer.text)
        if self._position == len(self._answer.token_ids):
            return whole
        return min(max(self._complete - self._answer.held_back, 0), whole)
