"""The conformance suite: tests of what a worker requires of an engine, for authors of engines.

    class TestMyEngine(EngineSuite):
        def make_engine(self) -> Engine:
            return MyEngine(WorkerSettings(engine="mine", max_running=self.slots))

pytest collects the class with all tests of the suite. They need no plugin for asynchronous tests: the suite
has its own event loop, in which one engine serves most of the tests. The last tests stop it and start
another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, TypeVar

import pytest

from inferfleet.schemas import Endpoint
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.worker import (
    Completion,
    Engine,
    EngineDeadError,
    Generation,
    GenerationError,
    ModelIdentity,
    TokenChunk,
)

__all__ = ["EngineSuite"]

TEXT_ENDPOINTS = tuple(endpoint for endpoint, spec in ENDPOINTS.items() if spec.generated is not None)

START_PATIENCE_S = 1800.0
"""How long an engine may take to load."""

STATS_POLL_S = 0.001
"""How often a test polls an engine's counts, whose changes no event announces."""

SHORT = 4
"""The tokens of a short answer. It ends long before a long one."""

SuiteT = TypeVar("SuiteT", bound="EngineSuite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Everything that a generation yielded."""

    chunks: Sequence[TokenChunk]
    completion: Completion

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of all choices, in the order in which they arrived."""
        return tuple(token for chunk in self.chunks for token in chunk.token_ids)

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The choices of the response."""
        choices: list[dict[str, Any]] = self.completion.response["choices"]
        return choices

    @property
    def texts(self) -> list[str]:
        """The text of each choice of the response."""
        return [
            (choice["message"]["content"] or "") if "message" in choice else choice["text"]
            for choice in self.choices
        ]

    def streamed(self, index: int = 0) -> str:
        """Return the text of a choice, from its chunks."""
        return "".join(chunk.text for chunk in self.chunks if chunk.index == index)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads an answer in a background task."""

    task: asyncio.Task[Answer]
    began: asyncio.Event

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self.task.done()

    async def until_first_chunk(self) -> None:
        """Wait for the first chunk of the answer. Raise the error that ended the answer before."""
        began = asyncio.ensure_future(self.began.wait())
        await asyncio.wait({began, self.task}, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if self.task.done():
            self.task.result()

    async def abandon(self) -> None:
        """Cancel the background task."""
        self.task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self.task


class Stage:
    """The event loop of a suite, and the engine that runs in it."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._engine: Engine | None = None

    def play(self, suite: EngineSuite, scenario: Callable[[Engine], Awaitable[None]]) -> None:
        """Run a scenario on the engine; start the engine first if necessary."""

        async def play() -> None:
            if self._engine is None:
                engine = suite.make_engine()
                async with asyncio.timeout(START_PATIENCE_S):
                    await engine.start()
                self._engine = engine
            async with _patience(suite):
                await scenario(self._engine)

        self._runner.run(play())

    def clear(self, suite: EngineSuite) -> None:
        """Stop the engine, if one runs. The next scenario gets a new one."""
        engine, self._engine = self._engine, None
        if engine is not None:

            async def stop() -> None:
                async with _patience(suite):
                    await engine.stop()

            self._runner.run(stop())

    def close(self, suite: EngineSuite) -> None:
        """Stop the engine and close the event loop."""
        try:
            self.clear(suite)
        finally:
            self._runner.close()


@asynccontextmanager
async def _patience(suite: EngineSuite) -> AsyncGenerator[None]:
    """Fail if the block takes longer than the suite allows."""
    scope = asyncio.timeout(suite.patience_s)
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise AssertionError(f"still waiting after {suite.patience_s:g} s (patience_s)") from error


def scenario(
    test: Callable[[SuiteT, Engine], Awaitable[None]], *, spoils: bool = False
) -> Callable[[SuiteT], None]:
    """Make a test of a coroutine that needs a started engine. If it ``spoils`` that, others get a new one."""

    # Not functools.wraps: pytest would take the parameter ``engine`` for a fixture.
    def run(self: SuiteT) -> None:
        stage = self.stage()
        try:
            stage.play(self, lambda engine: test(self, engine))
        finally:
            if spoils:
                stage.clear(self)

    run.__name__, run.__qualname__, run.__doc__ = test.__name__, test.__qualname__, test.__doc__
    return run


def last_scenario(test: Callable[[SuiteT, Engine], Awaitable[None]]) -> Callable[[SuiteT], None]:
    """Make a test that spoils its engine."""
    return scenario(test, spoils=True)


class EngineSuite:
    """The suite. Subclass it and override ``make_engine``; the other defaults suit a language model.

    ``slots`` is how many requests your engine should run at once, if it has such a limit. ``patience_s`` is
    how long one test may take. ``long_tokens`` is the length of a long answer: an engine in a process of its
    own needs a longer one, because it may generate while a busy machine holds up the test.
    """

    slots: ClassVar[int] = 4
    patience_s: ClassVar[float] = 120.0
    long_tokens: ClassVar[int] = 400

    _stages: ClassVar[dict[type[EngineSuite], Stage]] = {}
    _numbers: ClassVar[count[int]] = count(1)

    def make_engine(self) -> Engine:
        """Make the engine without starting it. The suite makes several, with one alive at a time."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its engine is made: make_engine()")

    def body(self, endpoint: Endpoint, prompt: str, *, tokens: int) -> dict[str, Any]:
        """Make a request whose answer has exactly so many tokens, and is the same each time."""
        limits = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        if endpoint is Endpoint.COMPLETIONS:
            return {"prompt": prompt, **limits}
        return {"messages": [{"role": "user", "content": prompt}], **limits}

    def refused_body(self, endpoint: Endpoint, prompt: str) -> dict[str, Any]:
        """Make a valid request that the engine cannot answer: by default for a model it does not have."""
        return {**self.body(endpoint, prompt, tokens=SHORT), "model": "a-model-that-no-engine-has"}

    async def kill(self, engine: Engine) -> None:
        """Make the engine die as it would by accident. Override this if your test can cause that."""
        pytest.skip("this suite does not know how its engine dies: override kill()")

    # What the engine says of itself

    @scenario
    async def test_a_started_engine_is_ready_and_says_which_model_it_has(self, engine: Engine) -> None:
        identity = engine.identity
        assert engine.model, "model is empty"
        assert identity is not None, "identity is still None behind start()"
        assert identity.engine, "identity.engine is empty"
        assert identity.name, "identity.name is empty"
        assert engine.endpoints, "it offers no endpoint"
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0), f"a started engine that nobody asked runs {stats}"

    @scenario
    async def test_every_endpoint_that_it_offers_is_answered(self, engine: Engine) -> None:
        for endpoint in engine.endpoints:
            if endpoint in TEXT_ENDPOINTS:
                body = self.body(endpoint, "hello", tokens=SHORT)
            else:
                body = dict(ENDPOINTS[endpoint].example)
            answer = await self._ask(engine, self._generation(endpoint, body))
            assert answer.completion.usage.prompt_tokens > 0, f"{endpoint}: the usage has no prompt tokens"

    # One answer

    @scenario
    async def test_an_answer_is_its_tokens_and_then_one_completion_that_agrees_with_them(
        self, engine: Engine
    ) -> None:
        for endpoint in self._text_endpoints(engine):
            answer = await self._ask_for(engine, "hello", tokens=24, endpoint=endpoint)
            response, usage = answer.completion.response, answer.completion.usage
            assert len(answer.choices) == 1
            assert answer.streamed() == answer.texts[0], "the chunks and the response have different texts"
            assert len(answer.token_ids) == usage.completion_tokens, (
                f"{len(answer.token_ids)} tokens were streamed, the usage says {usage.completion_tokens}"
            )
            assert response["model"] == engine.model
            assert response["usage"]["prompt_tokens"] == usage.prompt_tokens
            assert response["usage"]["completion_tokens"] == usage.completion_tokens
            assert response["usage"]["total_tokens"] == usage.total_tokens

    @scenario
    async def test_max_tokens_cuts_an_answer(self, engine: Engine) -> None:
        answer = await self._ask_for(engine, "hello", tokens=SHORT)

        assert answer.completion.usage.completion_tokens == SHORT
        assert answer.choices[0]["finish_reason"] == "length"

    @scenario
    async def test_tokens_come_while_the_answer_is_still_being_made(self, engine: Engine) -> None:
        answer = await self._ask_for(engine, "hello", tokens=self.long_tokens)

        assert len(answer.chunks[0].token_ids) < self.long_tokens / 2, "all of the answer came at once"

    @scenario
    async def test_the_prompt_is_told_before_the_first_token(self, engine: Engine) -> None:
        told: list[tuple[str, int]] = []

        def hear(*, model: str, tokens: int) -> None:
            told.append((model, tokens))

        generation = self._text(engine, "hello", tokens=SHORT, on_prompt=hear)
        completion: Completion | None = None
        async with aclosing(engine.generate(generation)) as events:
            async for event in events:
                assert told, "a token came before on_prompt was called"
                completion = event if isinstance(event, Completion) else completion

        assert completion is not None
        assert told[-1] == (engine.model, completion.usage.prompt_tokens)

    @scenario
    async def test_each_choice_is_streamed_under_its_own_index_or_refused(self, engine: Engine) -> None:
        generation = self._text(engine, "hello", tokens=SHORT, more={"n": 2})
        try:
            answer = await self._ask(engine, generation)
        except GenerationError as error:
            assert not error.code.retryable, f"the refusal of n=2 is {error.code}, which is tried again"
            return
        assert [choice["index"] for choice in answer.choices] == [0, 1]
        assert [answer.streamed(0), answer.streamed(1)] == answer.texts, (
            "the chunks of a choice are not its text in the response"
        )
        assert len(answer.token_ids) == answer.completion.usage.completion_tokens

    # An answer that an earlier attempt began

    @scenario
    async def test_a_resumable_answer_goes_on_from_any_token_as_if_it_had_not_been_cut(
        self, engine: Engine
    ) -> None:
        generation = self._text(engine, "hello", tokens=24)
        if not engine.resumable(generation):
            pytest.skip("this engine does not resume a plain text")
        whole = await self._ask(engine, generation)
        for cut in {1, len(whole.chunks) // 2, len(whole.chunks)}:
            before = tuple(whole.chunks[:cut])
            said = tuple(token for chunk in before for token in chunk.token_ids)
            rest = await self._ask(
                engine,
                self._text(engine, "hello", tokens=24, resume_token_ids=said, resume_chunks=before),
            )
            assert said + rest.token_ids == whole.token_ids, f"other tokens behind the first {len(said)}"
            assert "".join(chunk.text for chunk in before) + rest.streamed() == whole.streamed()
            assert rest.texts == whole.texts, "the response has not the text of the whole answer"
            assert rest.choices[0]["finish_reason"] == whole.choices[0]["finish_reason"]
            assert rest.completion.usage.completion_tokens == whole.completion.usage.completion_tokens

    # Requests that it cannot answer

    @scenario
    async def test_a_request_that_it_cannot_answer_is_refused_for_good_and_the_next_is_answered(
        self, engine: Engine
    ) -> None:
        prompt = "a-prompt-that-no-log-may-have"
        for endpoint in self._text_endpoints(engine):
            body = self.refused_body(endpoint, prompt)
            with pytest.raises(GenerationError) as refused:
                await self._ask(engine, self._generation(endpoint, body))
            assert not refused.value.code.retryable, f"{refused.value.code} would be tried again"
            assert str(refused.value), "the error says nothing"
            assert prompt not in str(refused.value), "the error quotes the prompt"
            await self._ask_for(engine, "hello", tokens=SHORT, endpoint=endpoint)

    # Many at once, and those that end early

    @scenario
    async def test_many_at_once_each_get_their_own_answer(self, engine: Engine) -> None:
        prompts = [f"question number {number}" for number in range(4 * self.slots)]
        alone = [await self._ask_for(engine, prompt, tokens=12) for prompt in prompts]

        together = await asyncio.gather(*(self._ask_for(engine, prompt, tokens=12) for prompt in prompts))

        for one, other in zip(together, alone, strict=True):
            assert one.token_ids == other.token_ids, "a request had other tokens among others than alone"
            assert one.texts == other.texts

    @scenario
    async def test_an_answer_whose_iterator_is_closed_frees_its_slot(self, engine: Engine) -> None:
        async with self._all_slots_but_one(engine) as others:
            async with aclosing(
                engine.generate(self._text(engine, "abandoned", tokens=self.long_tokens))
            ) as events:
                await anext(events)
            await self._expect_a_free_slot(engine, others)

    @scenario
    async def test_an_answer_whose_reader_is_cancelled_frees_its_slot(self, engine: Engine) -> None:
        async with self._all_slots_but_one(engine) as others:
            async with self._reading(engine, "abandoned", tokens=self.long_tokens) as reader:
                await reader.until_first_chunk()
                await reader.abandon()
            await self._expect_a_free_slot(engine, others)

    @scenario
    async def test_an_answer_that_is_abandoned_disturbs_no_other(self, engine: Engine) -> None:
        alone = await self._ask_for(engine, "a neighbour", tokens=self.long_tokens)
        async with (
            self._reading(engine, "a neighbour", tokens=self.long_tokens) as neighbour,
            self._reading(engine, "abandoned", tokens=self.long_tokens) as abandoned,
        ):
            await neighbour.until_first_chunk()
            await abandoned.until_first_chunk()
            await abandoned.abandon()
            together = await neighbour.task

        assert together.token_ids == alone.token_ids, "a request had other tokens beside an abandoned one"
        assert together.texts == alone.texts

    @scenario
    async def test_what_runs_is_counted_and_what_was_abandoned_is_not(self, engine: Engine) -> None:
        async with (
            self._reading(engine, "counted to the end", tokens=self.long_tokens) as witness,
            self._reading(engine, "abandoned", tokens=self.long_tokens) as abandoned,
        ):
            await witness.until_first_chunk()
            await abandoned.until_first_chunk()
            await self._expect_running(engine, 2, while_runs=witness)
            await abandoned.abandon()
            await self._expect_running(engine, 1, while_runs=witness)
        idle = engine.stats()
        while (idle.running, idle.waiting) != (0, 0):
            await asyncio.sleep(STATS_POLL_S)
            idle = engine.stats()
        assert 0 <= idle.kv_cache_usage <= 1

    # The end

    def test_an_engine_made_in_the_same_way_has_the_same_identity(self) -> None:
        identities: list[ModelIdentity | None] = []

        async def note(engine: Engine) -> None:
            identities.append(engine.identity)

        stage = self.stage()
        stage.play(self, note)
        stage.clear(self)
        stage.play(self, note)
        assert identities[0] == identities[1], "two engines that are made alike have different identities"

    @last_scenario
    async def test_an_engine_that_is_stopped_ends_what_runs_and_may_be_stopped_again(
        self, engine: Engine
    ) -> None:
        async with self._reading(engine, "cut off", tokens=self.long_tokens) as reader:
            await reader.until_first_chunk()
            await engine.stop()
            with pytest.raises(EngineDeadError):
                await reader.task
        with pytest.raises(EngineDeadError):
            await self._ask_for(engine, "too late", tokens=SHORT)
        await engine.stop()

    def test_an_engine_can_be_asked_and_stopped_before_it_has_started(self) -> None:
        async def stop() -> None:
            engine = self.make_engine()
            assert engine.model
            assert (engine.stats().running, engine.stats().waiting) == (0, 0)
            async with _patience(self):
                await engine.stop()
                await engine.stop()

        self.stage().clear(self)
        asyncio.run(stop())

    @last_scenario
    async def test_when_it_dies_every_answer_ends_with_an_error_that_says_so(self, engine: Engine) -> None:
        async with (
            self._reading(engine, "one", tokens=self.long_tokens) as one,
            self._reading(engine, "another", tokens=self.long_tokens) as another,
        ):
            await one.until_first_chunk()
            await another.until_first_chunk()
            await self.kill(engine)
            for reader in (one, another):
                with pytest.raises(EngineDeadError):
                    await reader.task
        with pytest.raises(EngineDeadError):
            await self._ask_for(engine, "too late", tokens=SHORT)

    # How the tests above ask

    @classmethod
    def teardown_class(cls) -> None:
        """Stop the engine and close the event loop."""
        if (stage := cls._stages.pop(cls, None)) is not None:
            stage.close(cls())

    def stage(self) -> Stage:
        """Return the stage on which the engine of this class runs."""
        return self._stages.setdefault(type(self), Stage())

    def _text_endpoints(self, engine: Engine) -> list[Endpoint]:
        offered = [endpoint for endpoint in TEXT_ENDPOINTS if endpoint in engine.endpoints]
        if not offered:
            pytest.skip("this engine generates no text")
        return offered

    def _generation(self, endpoint: Endpoint, body: Mapping[str, Any], **fields: Any) -> Generation:
        return Generation(
            id=f"conformance-{next(self._numbers)}", endpoint=endpoint, body=body, priority=4, **fields
        )

    def _text(
        self,
        engine: Engine,
        prompt: str,
        *,
        tokens: int,
        endpoint: Endpoint | None = None,
        more: Mapping[str, Any] = {},
        **fields: Any,
    ) -> Generation:
        """Request a text, by default at the first text endpoint that the engine serves."""
        endpoint = endpoint or self._text_endpoints(engine)[0]
        return self._generation(endpoint, {**self.body(endpoint, prompt, tokens=tokens), **more}, **fields)

    async def _ask_for(
        self, engine: Engine, prompt: str, *, tokens: int, endpoint: Endpoint | None = None
    ) -> Answer:
        return await self._ask(engine, self._text(engine, prompt, tokens=tokens, endpoint=endpoint))

    async def _ask(
        self, engine: Engine, generation: Generation, *, began: asyncio.Event | None = None
    ) -> Answer:
        """Read an answer to its end."""
        chunks: list[TokenChunk] = []
        completion: Completion | None = None
        async with aclosing(engine.generate(generation)) as events:
            async for event in events:
                assert completion is None, "something came behind the completion"
                if isinstance(event, TokenChunk):
                    chunks.append(event)
                    if began is not None:
                        began.set()
                else:
                    completion = event
        assert completion is not None, "the answer ended without a completion"
        return Answer(chunks=chunks, completion=completion)

    @asynccontextmanager
    async def _reading(self, engine: Engine, prompt: str, *, tokens: int) -> AsyncGenerator[Reader]:
        """Read an answer in the background, at most until the end of the block."""
        began = asyncio.Event()
        generation = self._text(engine, prompt, tokens=tokens)
        reader = Reader(asyncio.create_task(self._ask(engine, generation, began=began)), began)
        try:
            yield reader
        finally:
            await reader.abandon()

    @asynccontextmanager
    async def _all_slots_but_one(self, engine: Engine) -> AsyncGenerator[list[Reader]]:
        async with AsyncExitStack() as stack:
            readers = [
                await stack.enter_async_context(
                    self._reading(engine, f"long {number}", tokens=self.long_tokens)
                )
                for number in range(self.slots - 1)
            ]
            for reader in readers:
                await reader.until_first_chunk()
            yield readers

    async def _expect_a_free_slot(self, engine: Engine, others: Sequence[Reader]) -> None:
        """Expect that a short answer ends before the long ones: it need not wait for the abandoned one."""
        await self._ask_for(engine, "short", tokens=SHORT)
        assert not any(reader.done for reader in others), (
            "the slot of an abandoned answer was not free before the answers beside it had ended"
        )

    async def _expect_running(self, engine: Engine, running: int, *, while_runs: Reader) -> None:
        while engine.stats().running != running:
            assert not while_runs.done, (
                f"stats().running is {engine.stats().running}, and was not {running} while that many ran"
            )
            await asyncio.sleep(STATS_POLL_S)
