"""OpenAI's own SDK, unmodified: through the gateway, and in process on the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from tests.integration.conftest import (
    PATIENCE_S,
    Connect,
    StartGateway,
    StartWorker,
    chat,
    eventually,
    unfinished,
    until_running,
    until_tokens,
)

from inferfleet.producer import Fleet, SyncFleet, openai_client
from inferfleet.schemas import Endpoint, JobState
from inferfleet.schemas.job import Priority
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.worker.engines.simulated import SimulatedEngine, expected_text

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
LOOK_UP: Any = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
SLOW = {"simulated": {"tokens": 20_000, "step_delay_s": 0.01}}
HANGS = {"simulated": {"after_tokens": 1, "hang": True}}

Door = Literal["gateway", "queue"]


@pytest.fixture(params=["gateway", "queue"])
def door(request: pytest.FixtureRequest) -> Door:
    return request.param


@pytest.fixture
async def client(
    door: Door, fleet: Fleet, start_gateway: StartGateway, pool: str
) -> AsyncIterator[AsyncOpenAI]:
    options: dict[str, Any] = {"max_retries": 0, "timeout": PATIENCE_S}
    if door == "queue":
        made = openai_client(fleet, pool=pool, **options)
    else:
        made = AsyncOpenAI(base_url=f"{(await start_gateway()).url}/v1", api_key="none", **options)
    async with made:
        yield made


async def test_a_chat_has_the_answer_of_its_job(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()

    answer = await client.chat.completions.create(model=pool, messages=HELLO, max_tokens=5)

    job_id = answer.id.removeprefix("chatcmpl-")
    assert answer.choices[0].message.content == expected_text(Endpoint.CHAT, chat(max_tokens=5))
    assert answer.choices[0].finish_reason == "length"
    assert answer.to_dict()["usage"] == (await fleet.wait(job_id)).response["usage"]  # type: ignore[index]


async def test_a_stream_says_what_the_answer_in_one_piece_says(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    asked: Any = {"model": pool, "messages": HELLO}
    whole = await client.chat.completions.create(**asked)

    async with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        async for _ in stream:
            pass
        streamed = await stream.get_final_completion()

    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert streamed.usage is not None
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens


async def test_a_stream_comes_while_the_job_runs(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()

    stream = await client.chat.completions.create(model=pool, messages=HELLO, stream=True, extra_body=SLOW)
    said = [await anext(stream) for _ in range(3)]

    job_id = said[0].id.removeprefix("chatcmpl-")
    assert (await fleet.get(job_id)).state is JobState.RUNNING
    await stream.close()
    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.CANCELLED


async def test_a_completion_is_streamed_too(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    asked: Any = {"model": pool, "prompt": ["one", "two"], "max_tokens": 4, "n": 2}

    whole = await client.completions.create(**asked)
    texts = dict.fromkeys(range(4), "")
    async for chunk in await client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert list(texts.values()) == [choice.text for choice in whole.choices]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, stream: bool
) -> None:
    await start_worker()
    asked: Any = {"model": pool, "messages": HELLO, "tools": [LOOK_UP], "tool_choice": "required"}

    if stream:
        async with client.chat.completions.stream(**asked) as events:
            answer: Any = await events.get_final_completion()
    else:
        answer = await client.chat.completions.create(**asked)

    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("look_up", "{}")
    assert call.id
    assert choice.finish_reason == "tool_calls"


class Place(BaseModel):
    """A structured answer."""

    city: str
    height_m: int


async def test_a_structured_answer_is_parsed(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="tower", text='{"city": "Paris", "height_m": 330}')
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))

    answer = await client.chat.completions.parse(
        model=pool, messages=[{"role": "user", "content": "the tower"}], response_format=Place
    )

    assert answer.choices[0].message.parsed == Place(city="Paris", height_m=330)


async def test_texts_are_embedded(client: AsyncOpenAI, start_worker: StartWorker, pool: str) -> None:
    await start_worker()

    answer = await client.embeddings.create(model=pool, input=["one", "two"], dimensions=8)

    assert [len(each.embedding) for each in answer.data] == [8, 8]


async def test_documents_are_ranked(client: AsyncOpenAI, start_worker: StartWorker, pool: str) -> None:
    """The SDK has no method for it, so it sends the request as it is."""
    await start_worker()

    ranked: Any = await client.post(
        "/rerank", body={"query": "one", "documents": ["two", "three"], "top_n": 1}, cast_to=object
    )
    scored: Any = await client.post(
        "/score", body={"text_1": "one", "text_2": ["two", "three"]}, cast_to=object
    )

    assert len(ranked["results"]) == 1
    assert len(scored["data"]) == 2


async def test_models_and_pools_are_listed_and_a_model_finds_its_pool(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    model = f"org/{pool}"
    await start_worker(SimulatedEngine(model=model, max_running=4, engine_args={"speed": 0}))

    async def listed() -> bool:
        return model in [each.id async for each in client.models.list()]

    await eventually(listed)
    assert (await client.models.retrieve(pool)).to_dict()["pool"] == pool
    assert (await client.models.retrieve(model)).to_dict()["workers"] == 1
    answer = await client.chat.completions.create(model=model, messages=HELLO)
    assert answer.model == model
    assert (await fleet.get(answer.id.removeprefix("chatcmpl-"))).pool == pool


async def test_options_of_a_job_are_in_headers_or_the_extra_body(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()

    async def ask(**options: Any) -> Any:
        answer = await client.chat.completions.create(model="", messages=HELLO, **options)
        return await fleet.get(answer.id.removeprefix("chatcmpl-"))

    flex = await ask(service_tier="flex")
    urgent = await ask(service_tier="flex", extra_headers={"Inferfleet-Priority": "urgent"})
    turn = await ask(
        extra_body={"inferfleet": {"session_id": pool, "priority": 6}},
        extra_headers={"Inferfleet-Pool": pool},
    )

    assert [flex.priority, urgent.priority, turn.priority] == [Priority.BATCH, Priority.URGENT, 6]
    assert turn.session_id == pool
    assert [turn.pool, flex.pool] == [pool, pool]


async def test_an_idempotency_key_gives_the_same_answer_again(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    key = {"Idempotency-Key": pool}

    one = await client.chat.completions.create(model=pool, messages=HELLO, extra_headers=key)
    other = await client.chat.completions.create(model=pool, messages=HELLO, extra_headers=key)

    assert one == other
    with pytest.raises(openai.ConflictError) as refused:
        await client.chat.completions.create(model=pool, messages=[*HELLO, *HELLO], extra_headers=key)
    assert refused.value.code == "idempotency_conflict"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "kind", "code"),
    [
        ({"temperature": 9}, openai.BadRequestError, "invalid_request"),
        ({"model": "no/such"}, openai.NotFoundError, "model_not_found"),
        ({"model": "no-such-pool"}, openai.NotFoundError, "model_not_found"),
        ({"extra_headers": {"Inferfleet-Pool": "no-such-pool"}}, openai.NotFoundError, "pool_not_found"),
        ({"extra_headers": {"Inferfleet-Priority": "12"}}, openai.BadRequestError, "invalid_request"),
        ({"extra_headers": {"Inferfleet-Timeout": "soon"}}, openai.BadRequestError, "invalid_request"),
        ({"extra_body": {"inferfleet": {"tenant": "x"}}}, openai.BadRequestError, "invalid_request"),
        (
            {"messages": [{"role": "user", "content": "x" * 200_000}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        ({"logprobs": True}, openai.BadRequestError, "invalid_request"),
        (
            {"extra_body": {"simulated": {"fail": "engine_error"}, "inferfleet": {"max_attempts": 1}}},
            openai.InternalServerError,
            "too_many_attempts",
        ),
        (
            {"extra_body": HANGS, "extra_headers": {"Inferfleet-Timeout": "0.3"}},
            openai.InternalServerError,
            "timeout",
        ),
    ],
    ids=[
        "a bad field",
        "no such model",
        "no such model or pool",
        "no such pool",
        "a bad priority",
        "a bad timeout",
        "an option that is not offered",
        "too long a prompt",
        "what only the worker knows",
        "a job that failed",
        "too late",
    ],
)
async def test_each_refusal_is_an_exception_of_the_sdk(
    client: AsyncOpenAI,
    start_worker: StartWorker,
    pool: str,
    asked: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    await start_worker()

    async def ask() -> None:
        answer: Any = await client.chat.completions.create(
            **{"model": pool, "messages": HELLO, "stream": stream, **asked}
        )
        # A stream that has begun ends with the error.
        async for _ in answer:
            pass

    with pytest.raises(openai.APIError) as refused:
        await ask()

    if code != "timeout":
        assert isinstance(refused.value, kind)
    assert refused.value.code == code


async def test_a_full_queue_is_a_rate_limit(
    door: Door, connect: Connect, start_gateway: StartGateway, pool: str
) -> None:
    async with connect(queue_max_length=1) as fleet:
        await fleet.declare_pool(pool)
        await fleet.submit("hello", pool=pool)
        options: dict[str, Any] = {"max_retries": 0}
        if door == "queue":
            made = openai_client(fleet, **options)
        else:
            url = (await start_gateway(queue_max_length=1)).url
            made = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **options)
        async with made as client:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(model=pool, messages=HELLO)

    assert refused.value.code == "queue_full"
    assert int(refused.value.response.headers["retry-after"]) > 0


async def test_a_broker_that_is_gone_is_said_at_once(
    door: Door, connect: Connect, start_gateway: StartGateway, pool: str
) -> None:
    gone = {"amqp_url": "amqp://127.0.0.1:1/"}
    async with connect(**gone) as fleet:
        if door == "queue":
            made = openai_client(fleet, max_retries=0)
        else:
            made = AsyncOpenAI(
                base_url=f"{(await start_gateway(**gone)).url}/v1", api_key="none", max_retries=0
            )
        async with made as client:
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(model=pool, messages=HELLO)

    assert (refused.value.status_code, refused.value.code) == (503, "service_unreachable")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_job(
    client: AsyncOpenAI,
    start_worker: StartWorker,
    fleet: Fleet,
    store: aioredis.Redis,
    pool: str,
    stream: bool,
) -> None:
    await start_worker()
    asking = asyncio.create_task(
        client.chat.completions.create(model=pool, messages=HELLO, stream=stream, extra_body=HANGS)
    )
    (job_id,) = await unfinished(store, pool)
    await until_tokens(fleet, job_id)

    if stream:
        await (await asking).close()
    else:
        asking.cancel()
        await asyncio.wait({asking})

    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.CANCELLED


async def test_the_job_of_a_request_with_a_key_goes_on_without_its_client(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    asked: Any = {"model": pool, "messages": HELLO, "extra_headers": {"Idempotency-Key": pool}}
    asking = asyncio.create_task(client.chat.completions.create(**asked))
    (job_id,) = await unfinished(store, pool)
    asking.cancel()
    await asyncio.wait({asking})

    await start_worker()

    assert (await client.chat.completions.create(**asked)).id == f"chatcmpl-{job_id}"


async def test_a_job_that_somebody_else_cancels_is_a_conflict(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    asking = asyncio.create_task(client.chat.completions.create(model=pool, messages=HELLO, extra_body=HANGS))
    (job_id,) = await unfinished(store, pool)
    await until_running(fleet, job_id)

    await fleet.cancel(job_id)

    with pytest.raises(openai.ConflictError) as refused:
        await asking
    assert refused.value.code == "cancelled"


async def test_the_timeout_of_the_sdk_ends_the_wait(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()

    async def timed_out_after(timeout_s: float) -> str | None:
        """The job of a call that has timed out; nothing if the time was over before there was one."""
        created = client.with_options(timeout=timeout_s).chat.completions.create
        asking = asyncio.create_task(created(model=pool, messages=HELLO, extra_body=HANGS))
        finding = asyncio.create_task(unfinished(store, pool))
        with pytest.raises(openai.APITimeoutError):
            await asking
        found = finding.done()
        if not found:
            finding.cancel()
        await asyncio.wait({finding})
        return (await finding)[0] if found else None

    # A busy machine may take longer than the first of these to submit the job.
    job_id = await timed_out_after(0.5) or await timed_out_after(10) or await timed_out_after(PATIENCE_S)

    assert job_id is not None
    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.CANCELLED


async def test_an_answer_that_restarts_ends_its_stream_with_an_error(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    fails = {"tokens": 50, "after_tokens": 20, "fail": "engine_error", "fail_times": 1}

    # Several choices cannot be resumed.
    stream = await client.chat.completions.create(
        model=pool, messages=HELLO, n=2, stream=True, extra_body={"simulated": fails}
    )
    with pytest.raises(openai.APIError) as ended:
        async for _ in stream:
            pass

    assert ended.value.code == "answer_restarted"


async def test_an_answer_that_is_resumed_is_streamed_without_a_seam(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    fails = {"tokens": 50, "after_tokens": 20, "fail": "engine_error", "fail_times": 1}
    asked: Any = {"model": pool, "messages": HELLO, "extra_body": {"simulated": fails}}

    async with client.chat.completions.stream(**asked) as stream:
        streamed = await stream.get_final_completion()

    assert streamed.choices[0].message.content == expected_text(
        Endpoint.CHAT, chat("hello", simulated={"tokens": 50})
    )


# Blocking code


@pytest.fixture
async def blocking_client(
    door: Door,
    fleet: Fleet,
    start_gateway: StartGateway,
    pool: str,
    producer_settings: Callable[..., ProducerSettings],
) -> AsyncIterator[OpenAI]:
    if door == "gateway":
        with OpenAI(base_url=f"{(await start_gateway()).url}/v1", api_key="none", max_retries=0) as client:
            yield client
        return
    connected = await asyncio.to_thread(SyncFleet.connect, producer_settings())
    client = openai_client(connected, pool=pool, max_retries=0)
    yield client
    await asyncio.to_thread(client.close)
    await asyncio.to_thread(connected.close)


async def test_blocking_code_has_the_same(
    blocking_client: OpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()

    def ask() -> None:
        asked: Any = {"model": pool, "messages": HELLO}
        whole = blocking_client.chat.completions.create(**asked)
        with blocking_client.chat.completions.stream(**asked) as stream:
            text = stream.get_final_completion().choices[0].message.content
            assert text == whole.choices[0].message.content
        assert pool in [model.id for model in blocking_client.models.list()]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            blocking_client.chat.completions.create(**asked, temperature=9)

    async def worker_is_known() -> bool:
        return pool in {worker.pool for worker in await fleet.workers()}

    await eventually(worker_is_known)
    await asyncio.to_thread(ask)


async def test_blocking_code_may_leave_a_stream(
    blocking_client: OpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()

    def ask() -> str:
        stream = blocking_client.chat.completions.create(
            model=pool, messages=HELLO, stream=True, extra_body=SLOW
        )
        first = next(stream)
        stream.close()
        return first.id.removeprefix("chatcmpl-")

    job_id = await asyncio.to_thread(ask)

    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.CANCELLED
