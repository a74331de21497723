"""The simulated engine as a worker sees it: through ``Engine``, in an event loop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint, FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.engines.simulated import (
    SimulatedEngine,
    SimulatedParameters,
    expected_response,
    expected_text,
)
from inferfleet.worker.engines.simulated.vocabulary import decode
from inferfleet.worker.ports import (
    Completion,
    Engine,
    EngineDeadError,
    EngineStats,
    Generation,
    GenerationError,
)

MODEL = "pretend-8b"
INSTANT: dict[str, Any] = {"speed": 0}


@asynccontextmanager
async def running_engine(
    *, max_running: int = 8, **engine_args: float | str
) -> AsyncIterator[SimulatedEngine]:
    engine = SimulatedEngine(model=MODEL, max_running=max_running, engine_args=INSTANT | engine_args)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def chat(content: str = "hello", **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def generation(
    body: dict[str, Any],
    *,
    job_id: str = "job",
    endpoint: Endpoint = Endpoint.CHAT,
    priority: int = 4,
    resume: tuple[int, ...] = (),
) -> Generation:
    return Generation(id=job_id, endpoint=endpoint, body=body, priority=priority, resume_token_ids=resume)


async def collect(engine: Engine, request: Generation) -> tuple[list[TokenChunk], Completion]:
    chunks: list[TokenChunk] = []
    async with aclosing(engine.generate(request)) as stream:
        async for item in stream:
            if isinstance(item, Completion):
                return chunks, item
            chunks.append(item)
    raise AssertionError("the stream ended without a completion")


def text_of(completion: Completion) -> str:
    return completion.response["choices"][0]["message"]["content"]


async def hold_a_slot(engine: Engine, *, job_id: str = "holder", tokens: int = 3) -> asyncio.Task[Any]:
    """Start a request that never ends, and wait until it has its last token."""
    holding = asyncio.Event()
    hooks = {"hang": True, "after_tokens": tokens}

    async def read() -> None:
        seen = 0
        async for item in engine.generate(generation(chat(simulated=hooks), job_id=job_id)):
            assert isinstance(item, TokenChunk)
            seen += len(item.token_ids)
            if seen == tokens:
                holding.set()

    task = asyncio.create_task(read())
    await holding.wait()
    return task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_tokens_add_up_to_the_response_that_was_to_be_expected() -> None:
    body = chat(max_tokens=50, ignore_eos=True)

    async with running_engine() as engine:
        chunks, completion = await collect(engine, generation(body))

    created = completion.response["created"]
    assert completion.response == expected_response(
        Endpoint.CHAT, body, job_id="job", model=MODEL, created=created
    )
    assert (
        "".join(chunk.text for chunk in chunks) == text_of(completion) == expected_text(Endpoint.CHAT, body)
    )
    assert decode([id_ for chunk in chunks for id_ in chunk.token_ids]) == text_of(completion)
    assert completion.usage.completion_tokens == 50


async def test_tokens_come_one_by_one_when_time_passes_between_them() -> None:
    async with running_engine(speed=100) as engine:
        chunks, _ = await collect(engine, generation(chat(max_tokens=20, ignore_eos=True)))

    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 20


async def test_many_requests_at_once_each_get_their_own_answer() -> None:
    bodies = [chat(f"question {i}") for i in range(200)]

    async with running_engine() as engine:
        answers = await asyncio.gather(*[collect(engine, generation(body)) for body in bodies])

    assert [text_of(completion) for _, completion in answers] == [
        expected_text(Endpoint.CHAT, body) for body in bodies
    ]


async def test_an_answer_continued_at_any_token_is_the_uninterrupted_one() -> None:
    body = chat(max_tokens=40, ignore_eos=True)

    async with running_engine() as engine:
        before, whole = await collect(engine, generation(body))
        ids = tuple(id_ for chunk in before for id_ in chunk.token_ids)
        for cut in range(1, 41):
            after, continued = await collect(engine, generation(body, resume=ids[:cut]))

            assert continued.response["choices"] == whole.response["choices"]
            assert continued.usage == whole.usage
            assert tuple(id_ for chunk in after for id_ in chunk.token_ids) == ids[cut:]


async def test_requests_sent_back_for_lack_of_memory_end_with_the_same_text() -> None:
    parameters = {"kv_cache_tokens": 150, "max_model_len": 120}
    bodies = [chat(f"question {i}", max_tokens=90, ignore_eos=True) for i in range(6)]

    async with running_engine(**parameters) as engine:
        answers = await asyncio.gather(*[collect(engine, generation(body)) for body in bodies])
        idle = engine.stats()

    assert [text_of(completion) for _, completion in answers] == [
        expected_text(Endpoint.CHAT, body, parameters=SimulatedParameters.model_validate(parameters))
        for body in bodies
    ]
    assert idle == EngineStats(running=0, waiting=0, kv_cache_usage=0.0)


async def test_each_choice_streams_under_its_own_index() -> None:
    body = chat(n=3, max_tokens=20, ignore_eos=True)

    async with running_engine() as engine:
        chunks, completion = await collect(engine, generation(body))

    for choice in completion.response["choices"]:
        streamed = "".join(chunk.text for chunk in chunks if chunk.index == choice["index"])
        assert streamed == choice["message"]["content"]


async def test_a_tool_call_arrives_as_a_delta() -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]

    async with running_engine() as engine:
        chunks, completion = await collect(engine, generation(chat(tools=tools, tool_choice="required")))

    (call,) = completion.response["choices"][0]["message"]["tool_calls"]
    assert [chunk.delta for chunk in chunks if chunk.delta] == [{"tool_calls": [{"index": 0, **call}]}]
    assert sum(len(chunk.token_ids) for chunk in chunks) == completion.usage.completion_tokens


async def test_embeddings_come_as_one_completion() -> None:
    async with running_engine(embedding_dimensions=4) as engine:
        chunks, completion = await collect(
            engine, generation({"input": ["one", "two"]}, endpoint=Endpoint.EMBEDDINGS)
        )

    assert chunks == []
    assert [len(item["embedding"]) for item in completion.response["data"]] == [4, 4]


async def test_only_a_request_for_one_plain_text_can_be_continued() -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    engine = SimulatedEngine(model=MODEL, max_running=1, engine_args={})

    assert engine.resumable(generation(chat()))
    assert engine.resumable(generation({"prompt": "Once"}, endpoint=Endpoint.COMPLETIONS))
    assert not engine.resumable(generation(chat(n=2)))
    assert not engine.resumable(generation(chat(response_format={"type": "json_object"})))
    assert not engine.resumable(generation(chat(tools=tools, tool_choice="required")))
    assert not engine.resumable(generation({"prompt": ["a", "b"]}, endpoint=Endpoint.COMPLETIONS))
    assert not engine.resumable(generation({"input": "a"}, endpoint=Endpoint.EMBEDDINGS))


@pytest.mark.parametrize("body", [chat(n=2), chat()])
async def test_tokens_that_cannot_be_continued_from_are_refused(body: dict[str, Any]) -> None:
    async with running_engine() as engine:
        with pytest.raises(GenerationError, match="continue"):
            await collect(engine, generation(body, resume=(1, 2, 99_999)))


async def test_another_model_than_the_served_one_is_refused_by_name() -> None:
    async with running_engine() as engine:
        await collect(engine, generation(chat(model=MODEL)))
        with pytest.raises(GenerationError, match=f"{MODEL}.*gpt-9") as refused:
            await collect(engine, generation(chat(model="gpt-9")))

    assert refused.value.code is FailureCode.INVALID_REQUEST


async def test_a_full_engine_lets_requests_wait_and_says_so() -> None:
    async with running_engine(max_running=2) as engine:
        holders = [await hold_a_slot(engine, job_id=str(i)) for i in range(2)]
        waiting = asyncio.create_task(collect(engine, generation(chat())))
        await asyncio.sleep(0)

        stats = engine.stats()
        assert (stats.running, stats.waiting) == (2, 1)
        assert 0 < stats.kv_cache_usage < 1

        await cancel(holders[0])
        await waiting
        await cancel(holders[1])


async def test_a_freed_slot_goes_to_the_most_urgent() -> None:
    order: list[str] = []

    async def ask(engine: Engine, name: str, priority: int) -> None:
        await collect(engine, generation(chat(max_tokens=1), job_id=name, priority=priority))
        order.append(name)

    async with running_engine(max_running=1) as engine:
        holder = await hold_a_slot(engine)
        async with asyncio.TaskGroup() as group:
            for name, priority in [("batch", 1), ("normal", 4), ("urgent", 9)]:
                group.create_task(ask(engine, name, priority))
            await asyncio.sleep(0)
            await cancel(holder)

    assert order == ["urgent", "normal", "batch"]


async def test_cancelling_the_reader_frees_the_slot_at_once() -> None:
    async with running_engine() as engine:
        holder = await hold_a_slot(engine)
        assert engine.stats().running == 1

        await cancel(holder)

        assert engine.stats() == EngineStats()


async def test_closing_the_iterator_frees_the_slot_at_once() -> None:
    async with running_engine() as engine:
        stream = engine.generate(generation(chat(simulated={"hang": True, "after_tokens": 2})))
        await anext(stream)
        assert engine.stats().running == 1

        await stream.aclose()

        assert engine.stats() == EngineStats()


async def test_it_answers_nothing_before_it_has_started() -> None:
    engine = SimulatedEngine(model=MODEL, max_running=1, engine_args=INSTANT)

    with pytest.raises(EngineDeadError, match="not been started"):
        await collect(engine, generation(chat()))

    await engine.stop()


async def test_stopping_while_the_model_loads_ends_the_start() -> None:
    engine = SimulatedEngine(model=MODEL, max_running=1, engine_args={"load_s": 0.001})
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)

    await engine.stop()

    with pytest.raises(EngineDeadError, match="stopped"):
        await starting


@pytest.mark.parametrize("end", ["stop", "die"])
async def test_every_generation_ends_when_the_engine_does(end: str) -> None:
    async with running_engine(max_running=1) as engine:
        holder = await hold_a_slot(engine)
        waiting = asyncio.create_task(collect(engine, generation(chat())))
        await asyncio.sleep(0)

        if end == "stop":
            await engine.stop()
            await engine.stop()
        else:
            engine.die()

        for task in (holder, waiting):
            with pytest.raises(EngineDeadError):
                await task
        with pytest.raises(EngineDeadError):
            await collect(engine, generation(chat()))


async def test_an_engine_whose_loop_fails_is_dead_for_all_and_logs_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug in the batch")

    async with running_engine() as engine:
        monkeypatch.setattr("inferfleet.worker.engines.simulated.batch.Batch.finish", fail)
        with pytest.raises(EngineDeadError, match="log has the reason"):
            await collect(engine, generation(chat()))

    assert "a bug in the batch" in caplog.text


async def test_a_request_can_ask_for_a_failure_after_some_tokens() -> None:
    hooks = {"fail": "out_of_memory", "after_tokens": 5}
    seen: list[int] = []

    async def read(engine: Engine) -> None:
        async for item in engine.generate(generation(chat(simulated=hooks))):
            assert isinstance(item, TokenChunk)
            seen.extend(item.token_ids)

    async with running_engine() as engine:
        with pytest.raises(GenerationError) as failed:
            await read(engine)
        assert engine.stats() == EngineStats()

    assert failed.value.code is FailureCode.OUT_OF_MEMORY
    assert len(seen) == 5


async def test_a_request_can_fail_some_times_and_then_succeed() -> None:
    body = chat(simulated={"fail": "engine_error", "fail_times": 2})

    async with running_engine() as engine:
        for _ in range(2):
            with pytest.raises(GenerationError):
                await collect(engine, generation(body))

        _, completion = await collect(engine, generation(body))

    assert text_of(completion) == expected_text(Endpoint.CHAT, chat())


async def test_a_request_can_kill_the_engine() -> None:
    async with running_engine() as engine:
        holder = await hold_a_slot(engine)

        with pytest.raises(EngineDeadError):
            await collect(engine, generation(chat(simulated={"kill_engine": True})))
        with pytest.raises(EngineDeadError):
            await holder


async def test_a_request_can_ask_for_its_length() -> None:
    async with running_engine() as engine:
        _, completion = await collect(engine, generation(chat(simulated={"tokens": 300})))

    assert completion.usage.completion_tokens == 300
    assert completion.response["choices"][0]["finish_reason"] == "stop"


async def test_a_request_can_slow_every_step_down_even_where_nothing_else_waits() -> None:
    hooks = {"tokens": 10, "step_delay_s": 0.001}

    async with running_engine() as engine:
        chunks, _ = await collect(engine, generation(chat(simulated=hooks)))

    assert len(chunks) == 10


async def test_generated_tokens_are_logged_also_where_nobody_reads_them(tmp_path: Path) -> None:
    """Two engines append to one file. Resumed tokens were generated by somebody else."""
    log = tmp_path / "tokens.log"
    resumed = generation(chat(simulated={"tokens": 10}), resume=(1, 2, 3))

    async with running_engine(token_log=str(log)) as engine, running_engine(token_log=str(log)) as other:
        await collect(engine, generation(chat(simulated={"tokens": 10})))
        await collect(other, resumed)
        async with aclosing(other.generate(generation(chat(simulated={"tokens": 10_000})))) as unread:
            await anext(unread)
    tokens = [int(line) for line in log.read_text().splitlines()]

    assert sum(tokens) > 10 + 7
    assert sum(tokens) < 10 + 7 + 10_000


async def test_a_token_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    engine = SimulatedEngine(
        model=MODEL, max_running=1, engine_args={"token_log": str(tmp_path / "missing" / "tokens.log")}
    )

    with pytest.raises(ConfigurationError, match=r"'token_log'.*missing/tokens\.log"):
        await engine.start()


def test_a_request_can_kill_its_worker() -> None:
    script = textwrap.dedent(
        """
        import asyncio
        from inferfleet.schemas import Endpoint
        from inferfleet.worker.engines.simulated import SimulatedEngine
        from inferfleet.worker.ports import Generation

        async def main():
            engine = SimulatedEngine(model="m", max_running=1, engine_args={"speed": 0})
            await engine.start()
            body = {"prompt": "Once", "simulated": {"kill_worker": True, "after_tokens": 3}}
            request = Generation(id="job", endpoint=Endpoint.COMPLETIONS, body=body, priority=4)
            async for chunk in engine.generate(request):
                print(len(chunk.token_ids), flush=True)

        asyncio.run(main())
        """
    )

    worker = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S
    )

    assert worker.stdout.split() == ["3"], worker.stderr
    assert worker.returncode == -signal.SIGKILL


def test_the_engine_fits_the_seam() -> None:
    engine: Engine = SimulatedEngine(model=MODEL, max_running=1, engine_args={})

    assert engine.endpoints == frozenset(Endpoint)
