"""The conformance suite passes on the simulated engine, and catches engines that break a promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from inferfleet.schemas import Endpoint, FailureCode, Usage
from inferfleet.testing.engine_suite import EngineSuite
from inferfleet.worker import Completion, Engine, EngineStats, Generation, GenerationError, TokenChunk
from inferfleet.worker.engines.simulated import SimulatedEngine


class TestSimulatedEngine(EngineSuite):
    def make_engine(self) -> SimulatedEngine:
        return SimulatedEngine(model="simulated", max_running=self.slots, engine_args={"speed": 10})

    async def kill(self, engine: Engine) -> None:
        assert isinstance(engine, SimulatedEngine)
        engine.die()


Event = TokenChunk | Completion
Events = AsyncGenerator[Event]


class Broken(SimulatedEngine):
    """Keeps every promise; each engine below breaks one."""

    def __init__(self) -> None:
        super().__init__(model="simulated", max_running=EngineSuite.slots, engine_args={"speed": 10})

    def original(self, generation: Generation) -> Events:
        return super().generate(generation)

    async def generate(self, generation: Generation) -> Events:
        async with aclosing(self.original(generation)) as events:
            async for event in events:
                if (changed := self.change(event)) is not None:
                    yield changed

    def change(self, event: Event) -> Event | None:
        return event


class LosesAToken(Broken):
    lost = False

    def change(self, event: Event) -> Event | None:
        if isinstance(event, TokenChunk) and not self.lost:
            self.lost = True
            return None
        return event


class NeverCompletes(Broken):
    def change(self, event: Event) -> Event | None:
        return None if isinstance(event, Completion) else event


class TalksOn(Broken):
    async def generate(self, generation: Generation) -> Events:
        async for event in self.original(generation):
            yield event
        yield TokenChunk(token_ids=(1,), text="and")


class Miscounts(Broken):
    def change(self, event: Event) -> Event | None:
        if isinstance(event, Completion):
            return replace(event, usage=Usage(prompt_tokens=event.usage.prompt_tokens, completion_tokens=1))
        return event


class SaysAllAtOnce(Broken):
    async def generate(self, generation: Generation) -> Events:
        events = [event async for event in self.original(generation)]
        chunks = [event for event in events if isinstance(event, TokenChunk)]
        if generation.endpoint is not Endpoint.EMBEDDINGS and generation.body.get("n") is None:
            tokens = tuple(token for chunk in chunks for token in chunk.token_ids)
            yield TokenChunk(token_ids=tokens, text="".join(chunk.text for chunk in chunks))
        yield events[-1]


class TellsNoPrompt(Broken):
    def original(self, generation: Generation) -> Events:
        return super().original(replace(generation, on_prompt=None))


class MixesChoices(Broken):
    def change(self, event: Event) -> Event | None:
        return event.model_copy(update={"index": 0}) if isinstance(event, TokenChunk) else event


class BeginsAgain(Broken):
    def original(self, generation: Generation) -> Events:
        return super().original(replace(generation, resume_token_ids=(), resume_chunks=()))


class GoesOnUnasked(Broken):
    """Runs to the end what nobody reads any more."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[asyncio.Task[None]] = set()

    async def generate(self, generation: Generation) -> Events:
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        task = asyncio.create_task(self._run(generation, events))
        self.tasks.add(task)
        while not isinstance(event := await events.get(), Exception):
            yield event
            if isinstance(event, Completion):
                return
        raise event

    async def _run(self, generation: Generation, events: asyncio.Queue[Event | Exception]) -> None:
        try:
            async for event in self.original(generation):
                events.put_nowait(event)
        except Exception as error:
            events.put_nowait(error)


class EndsTheNeighbours(Broken):
    abandoned = False

    async def generate(self, generation: Generation) -> Events:
        events = self.original(generation)
        try:
            async for event in events:
                if self.abandoned and isinstance(event, TokenChunk):
                    raise GenerationError(FailureCode.ENGINE_ERROR, "aborted with another")
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.abandoned = True
            raise
        finally:
            await events.aclose()


class ConfusesNeighbours(Broken):
    """Gives a request what another one asked for, when both run at once."""

    latest: Generation | None = None

    async def generate(self, generation: Generation) -> Events:
        self.latest = generation
        await asyncio.sleep(0)
        async with aclosing(self.original(replace(generation, body=self.latest.body))) as events:
            async for event in events:
                yield event


class RefusesForNow(Broken):
    async def generate(self, generation: Generation) -> Events:
        try:
            async for event in self.original(generation):
                yield event
        except GenerationError as error:
            raise GenerationError(FailureCode.ENGINE_ERROR, str(error)) from error


class RaisesAnything(Broken):
    async def generate(self, generation: Generation) -> Events:
        try:
            async for event in self.original(generation):
                yield event
        except GenerationError as error:
            raise ValueError(str(error)) from error


class QuotesThePrompt(Broken):
    async def generate(self, generation: Generation) -> Events:
        try:
            async for event in self.original(generation):
                yield event
        except GenerationError as error:
            raise GenerationError(error.code, f"cannot answer {generation.body}") from error


class CountsNothing(Broken):
    def stats(self) -> EngineStats:
        return EngineStats()


class IsAnonymous(Broken):
    @property
    def identity(self) -> Any:
        return None


class IsAnotherEachTime(Broken):
    made = count()

    def __init__(self) -> None:
        super().__init__()
        self._identity = replace(self._identity, weights=str(next(self.made)))


class StopsOnce(Broken):
    stopped = False

    async def stop(self) -> None:
        assert not self.stopped, "stopped twice"
        self.stopped = True
        await super().stop()


class LeavesReadersWaiting(Broken):
    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()


class DiesUnnoticed(Broken):
    def die(self, reason: str = "") -> None:
        if self._loop is not None:
            self._loop.cancel()


AGREES = "test_an_answer_is_its_tokens_and_then_one_completion_that_agrees_with_them"
REFUSES = "test_a_request_that_it_cannot_answer_is_refused_for_good_and_the_next_is_answered"

BROKEN = {
    LosesAToken: (AGREES, "the chunks and the response have different texts"),
    NeverCompletes: ("test_every_endpoint_that_it_offers_is_answered", "ended without a completion"),
    TalksOn: (AGREES, "something came behind the completion"),
    Miscounts: (AGREES, "24 tokens were streamed, the usage says 1"),
    SaysAllAtOnce: ("test_tokens_come_while_the_answer_is_still_being_made", "came at once"),
    TellsNoPrompt: ("test_the_prompt_is_told_before_the_first_token", "before on_prompt was called"),
    MixesChoices: (
        "test_each_choice_is_streamed_under_its_own_index_or_refused",
        "the chunks of a choice are not its text",
    ),
    BeginsAgain: (
        "test_a_resumable_answer_goes_on_from_any_token_as_if_it_had_not_been_cut",
        "other tokens behind the first",
    ),
    GoesOnUnasked: (
        "test_an_answer_whose_iterator_is_closed_frees_its_slot",
        "the slot of an abandoned answer was not free",
    ),
    EndsTheNeighbours: ("test_an_answer_that_is_abandoned_disturbs_no_other", "aborted with another"),
    ConfusesNeighbours: ("test_many_at_once_each_get_their_own_answer", "other tokens among others"),
    RefusesForNow: (REFUSES, "engine_error would be tried again"),
    RaisesAnything: (REFUSES, "a-model-that-no-engine-has"),
    QuotesThePrompt: (REFUSES, "the error quotes the prompt"),
    CountsNothing: ("test_what_runs_is_counted_and_what_was_abandoned_is_not", "running is 0, and was not 2"),
    IsAnonymous: (
        "test_a_started_engine_is_ready_and_says_which_model_it_has",
        "identity is still None behind start",
    ),
    IsAnotherEachTime: (
        "test_an_engine_made_in_the_same_way_has_the_same_identity",
        "have different identities",
    ),
    StopsOnce: ("test_an_engine_can_be_asked_and_stopped_before_it_has_started", "stopped twice"),
    LeavesReadersWaiting: (
        "test_an_engine_that_is_stopped_ends_what_runs_and_may_be_stopped_again",
        "still waiting after",
    ),
    DiesUnnoticed: ("test_when_it_dies_every_answer_ends_with_an_error_that_says_so", "still waiting after"),
}


@pytest.mark.parametrize("engine", BROKEN, ids=lambda engine: engine.__name__)
def test_an_engine_that_breaks_a_promise_is_caught(engine: type[Broken]) -> None:
    test, words = BROKEN[engine]

    class Suite(TestSimulatedEngine):
        # Some make a test hang.
        patience_s = 2.0 if words == "still waiting after" else 120.0

        def make_engine(self) -> Broken:
            return engine()

    try:
        with pytest.raises(Exception, match=words):
            getattr(Suite(), test)()
    finally:
        with suppress(Exception):
            Suite.teardown_class()
