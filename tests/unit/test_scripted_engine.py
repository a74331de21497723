"""The engine of users' tests: it conforms, and says what its script says, whoever asks and however often."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.testing.engine_suite import EngineSuite
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.worker import Completion, Engine, Generation, GenerationError, NotContinuableError, TokenChunk


class TestScriptedEngine(EngineSuite):
    def make_engine(self) -> ScriptedEngine:
        return ScriptedEngine.from_settings(WorkerSettings(engine="scripted", max_running=self.slots))

    async def kill(self, engine: Engine) -> None:
        await engine.stop()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def engine_for(script: Script) -> ScriptedEngine:
    settings = WorkerSettings(engine="scripted", engine_args={"script": str(script.folder)})
    return ScriptedEngine.from_settings(settings)


async def ask(script: Script, prompt: str, **body: Any) -> str:
    """Ask an engine of its own, as if each attempt were on another worker."""
    engine = engine_for(script)
    await engine.start()
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": prompt}]
    generation = Generation(id="job", endpoint=Endpoint.CHAT, body={"messages": messages, **body}, priority=4)
    try:
        async with aclosing(engine.generate(generation)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    text: str = event.response["choices"][0]["message"]["content"]
                    return text
    finally:
        await engine.stop()
    raise AssertionError("no completion")


async def test_without_a_script_it_repeats_the_last_message(script: Script) -> None:
    assert await ask(script, "say  this\nback") == "say  this\nback"


async def test_the_rule_that_fits_and_came_last_counts(script: Script) -> None:
    script.add(prompt="", text="anything")
    script.add(prompt="France", text="Paris")
    script.add(prompt="Italy", text="Rome")

    assert await ask(script, "the capital of France?") == "Paris"
    assert await ask(script, "the capital of Spain?") == "anything"


async def test_a_rule_is_used_so_often_by_all_workers_together(script: Script) -> None:
    script.add(prompt="", failure=FailureCode.ENGINE_ERROR, times=2)

    for _ in range(2):
        with pytest.raises(GenerationError) as failed:
            await ask(script, "x")
        assert failed.value.code is FailureCode.ENGINE_ERROR
    assert await ask(script, "x") == "x"


async def test_max_tokens_counts_words(script: Script) -> None:
    script.add(prompt="", text="one two three")

    assert await ask(script, "x", max_tokens=2) == "one two "


async def test_an_answer_that_hung_goes_on_elsewhere_under_its_own_rule(
    script: Script,
) -> None:
    script.add(prompt="", text="one two three", times=1, hang_after_tokens=2)
    first, second = engine_for(script), engine_for(script)
    asked: dict[str, Any] = {
        "id": "a/job",
        "endpoint": Endpoint.COMPLETIONS,
        "body": {"prompt": "x"},
        "priority": 4,
    }
    await first.start()
    await second.start()
    async with aclosing(first.generate(Generation(**asked))) as events:
        said = [await anext(events), await anext(events)]
        hanging = asyncio.ensure_future(anext(events))
        while not list(script.hung()):
            await asyncio.sleep(0)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
    chunks = tuple(chunk for chunk in said if isinstance(chunk, TokenChunk))
    script.add(prompt="", text="something else")

    rest = [
        event
        async for event in second.generate(
            Generation(
                **asked,
                resume_chunks=chunks,
                resume_token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            )
        )
    ]

    assert isinstance(rest[-1], Completion)
    assert rest[-1].response["choices"][0]["text"] == "one two three"
    assert [event.text for event in rest[:-1] if isinstance(event, TokenChunk)] == ["three"]
    await first.stop()
    await second.stop()


async def test_an_answer_whose_rule_is_gone_cannot_go_on(script: Script) -> None:
    engine = engine_for(script)
    await engine.start()

    with pytest.raises(NotContinuableError):
        await anext(
            engine.generate(
                Generation(
                    id="job",
                    endpoint=Endpoint.COMPLETIONS,
                    body={"prompt": "x"},
                    priority=4,
                    resume_token_ids=(7 << 16,),
                    resume_chunks=(TokenChunk(token_ids=(7 << 16,), text="one "),),
                )
            )
        )
    await engine.stop()


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="speed"):
        ScriptedEngine.from_settings(WorkerSettings(engine="scripted", engine_args={"speed": 1}))
