"""An engine that answers what the test has scripted, and otherwise repeats the prompt.

A token is a word with the blanks behind it. Its id encodes its rule and its position. So the engine resumes
an answer that another worker began, whatever the test has scripted since.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Self, cast

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.said import text_of
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.testing.script import Rule, Script
from inferfleet.worker import (
    Completion,
    EngineDeadError,
    EngineStats,
    Generation,
    GenerationError,
    ModelIdentity,
    NotContinuableError,
    TokenChunk,
    text_completion,
)
from inferfleet.worker.engines.simulated import SimulatedEngine

_MOST_TOKENS: Final = 1 << 16
"""The maximum length of an answer. A token's id is its rule's number times this, plus its position."""

_WORD: Final = re.compile(r"\s*\S+\s*|\s+")


class ScriptedEngine:
    """Answers chats and completions by a script, without delay; all others as the simulated engine does."""

    def __init__(self, *, model: str, max_running: int, script: Script | None) -> None:
        self._model = model
        self._identity = ModelIdentity(engine="scripted", name=model)
        self._script = script
        self._slots = asyncio.Semaphore(max_running)
        self._running = 0
        self._waiting = 0
        self._started = False
        self._stopped = asyncio.Event()
        self._others = SimulatedEngine(model=model, max_running=max_running, engine_args={"speed": 0})

    @classmethod
    def from_settings(cls, settings: WorkerSettings) -> Self:
        """Make the engine that a worker runs. ``engine_args`` may have the folder of a ``script``.

        Raises:
            ConfigurationError: ``engine_args`` has another argument.

        """
        arguments = dict(settings.engine_args)
        folder = arguments.pop("script", None)
        if arguments:
            raise ConfigurationError(f"engine_args: the scripted engine knows no {', '.join(arguments)}")
        return cls(
            model=settings.model or "scripted",
            max_running=settings.max_running,
            script=None if folder is None else Script(Path(folder)),
        )

    @property
    def model(self) -> str:
        """The model's served name."""
        return self._model

    @property
    def identity(self) -> ModelIdentity:
        """The identity: the same for every script."""
        return self._identity

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """All endpoints."""
        return frozenset(Endpoint)

    async def start(self) -> None:
        """Become ready at once."""
        await self._others.start()
        self._started = True

    async def stop(self) -> None:
        """End every generation with ``EngineDeadError``. Safe to call twice, and before ``start``."""
        self._stopped.set()
        await self._others.stop()

    def stats(self) -> EngineStats:
        """Count requests."""
        others = self._others.stats()
        return EngineStats(running=self._running + others.running, waiting=self._waiting + others.waiting)

    def resumable(self, generation: Generation) -> bool:
        """Return whether the answer is a text."""
        return ENDPOINTS[generation.endpoint].generated is not None

    async def generate(self, generation: Generation) -> AsyncGenerator[TokenChunk | Completion]:
        """Answer one request; ``Engine.generate`` says what is guaranteed."""
        self._require_alive()
        if ENDPOINTS[generation.endpoint].generated is None:
            async with aclosing(self._others.generate(generation)) as events:
                async for event in events:
                    yield event
            return
        self._refuse(generation.body)
        prompt = _prompt(generation.body)
        rule = self._rule(generation, prompt)
        if rule is not None and rule.failure is not None:
            raise GenerationError(rule.failure, f"the test asked for {rule.failure.value!r}")
        prompt_tokens = max(1, len(_words(prompt)))
        if generation.on_prompt is not None:
            generation.on_prompt(model=self._model, tokens=prompt_tokens)
        words, finish_reason = _cut(prompt if rule is None else rule.text, generation.body)
        calls = [] if rule is None or finish_reason == "length" else list(rule.tool_calls)
        chunks = list(generation.resume_chunks)
        await self._take_slot()
        try:
            for place in range(len(generation.resume_token_ids), len(words)):
                await self._hang(generation, rule, place)
                await asyncio.sleep(0)
                self._require_alive()
                token = (0 if rule is None else rule.number) * _MOST_TOKENS + place
                chunks.append(TokenChunk(token_ids=(token,), text=words[place]))
                yield chunks[-1]
            await self._hang(generation, rule, len(words))
            for place in range(max(len(words), len(generation.resume_token_ids)), len(words) + len(calls)):
                self._require_alive()
                chunks.append(_call_chunk(generation.id, rule, place, place - len(words)))
                yield chunks[-1]
        finally:
            self._running -= 1
            self._slots.release()
        yield text_completion(
            generation,
            chunks,
            model=self._model,
            prompt_tokens=prompt_tokens,
            finish_reason="tool_calls" if calls else finish_reason,
        )

    async def _take_slot(self) -> None:
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1

    def _refuse(self, body: Mapping[str, Any]) -> None:
        if body.get("model") not in (None, "", self._model):
            raise GenerationError(
                FailureCode.INVALID_REQUEST,
                f"model: this worker serves {self._model!r}, not {body['model']!r}: workers(model=…)",
            )
        if body.get("n") not in (None, 1):
            raise GenerationError(FailureCode.INVALID_REQUEST, "n: the scripted engine gives one choice")

    def _rule(self, generation: Generation, prompt: str) -> Rule | None:
        """Find the rule of an answer: that of its tokens, if an earlier attempt has left some."""
        if self._script is None:
            return None
        if not generation.resume_token_ids:
            return self._script.take(prompt)
        number = generation.resume_token_ids[0] // _MOST_TOKENS
        if number == 0:
            return None
        for rule in self._script.rules():
            if rule.number == number:
                return rule
        raise NotContinuableError("the script that it began with is gone")

    async def _hang(self, generation: Generation, rule: Rule | None, place: int) -> None:
        if (
            rule is not None
            and rule.hang_after_tokens == place
            and self._script is not None
            and self._script.hang(rule, generation.id)
        ):
            await self._stopped.wait()

    def _require_alive(self) -> None:
        if self._stopped.is_set():
            raise EngineDeadError("the scripted engine has been stopped")
        if not self._started:
            raise EngineDeadError("the scripted engine has not been started")


def _prompt(body: Mapping[str, Any]) -> str:
    """Return the text that selects the rule: that of the last message, or the prompt."""
    messages: Sequence[Mapping[str, Any]] | None = body.get("messages")
    if messages is not None:
        return text_of(messages[-1].get("content")) if messages else ""
    prompt: object = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    return " ".join(map(str, cast("Sequence[object]", prompt or ())))


def _call_chunk(job_id: str, rule: Rule | None, place: int, index: int) -> TokenChunk:
    """Make the chunk of a tool call, which is one token, and has the same id in every attempt."""
    assert rule is not None  # noqa: S101 - only a rule has tool calls
    call = rule.tool_calls[index]
    delta = {
        "index": index,
        "id": f"call_{job_id}_{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    return TokenChunk(token_ids=(rule.number * _MOST_TOKENS + place,), text="", delta={"tool_calls": [delta]})


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _cut(text: str, body: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the answer's words and its finish reason. ``ignore_eos`` repeats the text up to the limit."""
    words = _words(text)
    limit: int | None = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is None:
        return words[:_MOST_TOKENS], "stop"
    if body.get("ignore_eos") and words:
        words *= -(-limit // len(words))
    return (words[:limit], "length") if limit < len(words) or body.get("ignore_eos") else (words, "stop")
