"""Probes a loaded model: finds out whether it is fit to answer jobs, before it gets any.

Fixed prompts at temperature 0 show a model whose weights are lost: it says nothing, or repeats one token.
The log-probabilities of a fixed English text show a model that does not fit its tokenizer, or whose weights
are damaged: it finds plain English surprising. A model that does not generate has to give finite numbers that
differ between different inputs. A model that answers only chats gets the prompts as chats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from inferfleet.schemas import Endpoint
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.ports import Completion, Engine, Generation, GenerationError

PROMPTS: Final = (
    "The capital of France is",
    "Water freezes when the temperature",
    "def add(a, b):\n    return",
    "Once upon a time, in a small village by the sea,",
)

TOKENS: Final = 16
"""How many tokens each answer may have."""

THINKING_TOKENS: Final = 1024
"""The same for a model that thinks first."""

TEXT: Final = (
    "The sun rises in the east and sets in the west. In the morning people get up, eat breakfast and go to "
    "work, and in the evening they come home to their families."
)

MOST_SURPRISE: Final = 2.0
"""How many times as surprising as to the current model the text may be to the next, in nats a character. An
8B model and one of 135M parameters differ by less; one with lost weights or another tokenizer's by more."""

_HIGHEST: Final = 9
"""The priority of the probe's requests."""


class ProbeFailedError(Exception):
    """The model is not fit to answer jobs; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a model that is fit has shown.

    ``hash`` is of all tokens that it has generated, empty for a model that generates none. ``perplexity`` is
    that of the text, per token, and ``surprise`` the same in nats per character, which models with different
    tokenizers have in common; ``None`` if the engine gives no log-probabilities.
    """

    hash: str = ""
    perplexity: float | None = None
    surprise: float | None = None


async def probe(engine: Engine) -> ProbeResult:
    """Probe a started engine.

    Raises:
        ProbeFailedError: The model is not fit to answer jobs.
        EngineDeadError: The engine has died of it.

    """
    try:
        if Endpoint.COMPLETIONS in engine.endpoints:
            return await _probe_text(engine)
        if Endpoint.CHAT in engine.endpoints:
            return ProbeResult(hash=_hash([await _chat(engine, prompt) for prompt in PROMPTS]))
        if Endpoint.EMBEDDINGS in engine.endpoints:
            found = await _ask(engine, Endpoint.EMBEDDINGS, {"input": list(PROMPTS)})
            _require_numbers([each["embedding"] for each in found.completion.response["data"]])
        elif Endpoint.SCORE in engine.endpoints:
            body = {"text_1": PROMPTS[0], "text_2": [*PROMPTS[1:], "Paris."]}
            found = await _ask(engine, Endpoint.SCORE, body)
            _require_numbers([[each["score"]] for each in found.completion.response["data"]])
        elif Endpoint.RERANK in engine.endpoints:
            body = {"query": PROMPTS[0], "documents": [*PROMPTS[1:], "Paris."]}
            found = await _ask(engine, Endpoint.RERANK, body)
            _require_numbers([[each["relevance_score"]] for each in found.completion.response["results"]])
        else:
            raise ProbeFailedError("it answers no endpoint that can be probed")
    except GenerationError as error:
        raise ProbeFailedError(f"it refuses the probe: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ProbeFailedError(f"its answer to the probe is malformed ({type(error).__name__})") from error
    return ProbeResult()


def require(
    found: ProbeResult, *, current: ProbeResult | None, hash_: str | None, max_perplexity: float | None
) -> None:
    """Compare a result with what is required, and with that of the current model.

    Raises:
        ProbeFailedError: A requirement is not met.

    """
    if hash_ is not None and found.hash != hash_:
        raise ProbeFailedError(f"its probe hash is {found.hash or 'unknown'}, but {hash_} is required")
    if max_perplexity is not None:
        if found.perplexity is None:
            raise ProbeFailedError(
                f"its perplexity is unknown, but at most {max_perplexity:g} is required: this engine "
                "gives no log-probabilities"
            )
        if found.perplexity > max_perplexity:
            raise ProbeFailedError(
                f"the perplexity of the probe's text is {found.perplexity:.1f}, but at most "
                f"{max_perplexity:g} is required"
            )
    if (
        current is not None
        and current.surprise is not None
        and found.surprise is not None
        and found.surprise > MOST_SURPRISE * current.surprise
    ):
        raise ProbeFailedError(
            f"plain English surprises it {found.surprise / current.surprise:.1f} times as much as the "
            f"current model, but at most {MOST_SURPRISE:g} times is allowed: its weights are damaged, or it "
            "has another model's tokenizer"
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    token_ids: tuple[int, ...]
    completion: Completion


async def _probe_text(engine: Engine) -> ProbeResult:
    answers: list[tuple[int, ...]] = []
    for prompt in PROMPTS:
        body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        answers.append((await _ask(engine, Endpoint.COMPLETIONS, body)).token_ids)
    hashed = _hash(answers)
    logprobs = await _logprobs_of_text(engine)
    if logprobs is None:
        return ProbeResult(hash=hashed)
    return ProbeResult(
        hash=hashed,
        perplexity=math.exp(-sum(logprobs) / len(logprobs)),
        surprise=-sum(logprobs) / len(TEXT),
    )


async def _chat(engine: Engine, prompt: str) -> tuple[int, ...]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "temperature": 0}
    try:
        answer = await _ask(engine, Endpoint.CHAT, {**body, "max_tokens": TOKENS})
    except GenerationError as error:
        if error.code.retryable:
            raise
        # Models of OpenAI that reason know only this limit and no temperature, and hide what they think.
        del body["temperature"]
        answer = await _ask(engine, Endpoint.CHAT, {**body, "max_completion_tokens": THINKING_TOKENS})
    return answer.token_ids


def _hash(answers: list[tuple[int, ...]]) -> str:
    """Hash all tokens of answers that make sense."""
    if not any(answers):
        raise ProbeFailedError("it answers nothing")
    # A small model may repeat itself after one prompt, but not after all of them.
    if all(len(set(answer)) < 2 for answer in answers):
        token = next(answer[0] for answer in answers if answer)
        raise ProbeFailedError(f"it answers every prompt with one token over and over, such as {token}")
    return hashlib.blake2b(repr(answers).encode(), digest_size=8).hexdigest()


async def _logprobs_of_text(engine: Engine) -> list[float] | None:
    """Return the log-probability of each token of the text; ``None`` if the engine gives none."""
    body = {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    try:
        answer = await _ask(engine, Endpoint.COMPLETIONS, body)
    except GenerationError:
        return None
    match answer.completion.response["choices"][0].get("logprobs"):
        case {"tokens": [*tokens], "token_logprobs": [*numbers]}:
            pass
        case _:
            # A remote server may give none, or those of chats, which have other names.
            return None
    if _letters(TEXT) not in _letters("".join(tokens)):
        raise ProbeFailedError("its tokenizer does not give back the text that it has encoded")
    # The last token is generated, and nothing is before the first, so that it has no probability.
    found: list[float] = [each for each in numbers[:-1] if each is not None]
    if not found or not all(map(math.isfinite, found)):
        raise ProbeFailedError("its log-probabilities are not finite numbers")
    return found


def _letters(text: str) -> str:
    """Leave out spaces, of which each tokenizer has its own idea."""
    return "".join(text.split())


def _require_numbers(rows: list[list[float]]) -> None:
    if not all(math.isfinite(number) for row in rows for number in row):
        raise ProbeFailedError("its numbers are not finite")
    if _all_equal(rows) or not any(number for row in rows for number in row):
        raise ProbeFailedError("it gives the same numbers for different texts")


def _all_equal(rows: Iterable[list[float]]) -> bool:
    first, *others = rows
    return all(row == first for row in others)


async def _ask(engine: Engine, endpoint: Endpoint, body: Mapping[str, Any]) -> _Answer:
    generation = Generation(id="probe", endpoint=endpoint, body=body, priority=_HIGHEST)
    token_ids: list[int] = []
    text = ""
    completion: Completion | None = None
    async with aclosing(engine.generate(generation)) as events:
        async for event in events:
            match event:
                case TokenChunk():
                    token_ids += event.token_ids
                    text += event.text or (event.delta or {}).get("reasoning") or ""
                case Completion():
                    completion = event
    if completion is None:
        raise ProbeFailedError("it ends an answer without completing it")
    if any(each < 0 for each in token_ids):
        # A remote server may not return the ids of its tokens: its characters stand for them.
        token_ids = [*map(ord, text)]
    return _Answer(tuple(token_ids), completion)
