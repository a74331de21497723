"""How responses end, and how they are forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from openai.types.responses import ResponseItemList
from tests.integration.conftest import (
    PATIENCE_S,
    StartWorker,
    eventually,
    unfinished,
    until_tokens,
)
from tests.integration.responses.conftest import (
    checked,
    ended,
    job_of,
    read,
)

from inferfleet.producer import Fleet
from inferfleet.schemas import FailureCode, JobState
from inferfleet.schemas.names import job_key, journal_key, response_key, result_key
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine


async def test_a_response_of_the_background_is_cancelled(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hang", text="one two three", hang_after_tokens=2)
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    stream = await client.responses.create(model=pool, input="hang", background=True, stream=True)
    first = await read(stream, count=6)
    response_id = first[0].response.id

    cancelled = checked(await client.responses.cancel(response_id))

    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    assert cancelled.output_text == "one two "
    assert (cancelled.output[0].status, await client.responses.cancel(response_id)) == (
        "incomplete",
        cancelled,
    )
    rest = await read(await client.responses.retrieve(response_id, stream=True, starting_after=5))
    assert (rest[-1].type, rest[-1].response) == ("response.incomplete", cancelled)


async def test_only_the_background_is_cancelled(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    response = await client.responses.create(model=pool, input="hello")

    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.cancel(response.id)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_what_it_waits_for(
    client: AsyncOpenAI,
    start_worker: StartWorker,
    fleet: Fleet,
    store: aioredis.Redis,
    pool: str,
    tmp_path: Path,
    stream: bool,
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hang", text="one two three", hang_after_tokens=2)
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    asking = asyncio.create_task(client.responses.create(model=pool, input="hang", stream=stream))
    (job_id,) = await unfinished(store, pool)
    await until_tokens(fleet, job_id)

    if stream:
        await (await asking).close()
    else:
        asking.cancel()
        await asyncio.wait({asking})

    assert (await fleet.wait(job_id, timeout_s=PATIENCE_S)).state is JobState.CANCELLED
    assert (await client.responses.retrieve(f"resp_{job_id}")).status == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_an_exception_or_the_state_of_the_background(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, stream: bool
) -> None:
    await start_worker()
    asked: Any = {"model": pool, "input": "x" * 200_000}

    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(**asked, stream=stream)
    later: Any = await client.responses.create(**asked, stream=stream, background=True)
    failed = (await read(later))[-1].response if stream else await ended(client, later.id)

    assert refused.value.code == "context_length_exceeded"
    assert (failed.status, failed.error.code, failed.output) == ("failed", "invalid_prompt", [])
    assert failed.error.message.startswith("prompt_too_long: ")
    job = refused.value.response.headers["inferfleet-job"]
    assert (await client.responses.retrieve(f"resp_{job}")).status == "failed"


async def test_a_response_is_forgotten_when_it_is_deleted_or_not_stored(
    client: AsyncOpenAI, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    waiting = await client.responses.create(model=pool, input="hello", background=True)
    await client.responses.delete(waiting.id)
    await start_worker()
    stored = await client.responses.create(model=pool, input="hello")
    await client.responses.delete(stored.id)
    whole = await client.responses.create(model=pool, input="hello", store=False)
    streamed = await read(await client.responses.create(model=pool, input="hello", store=False, stream=True))

    assert whole.output_text == streamed[-1].response.output_text == stored.output_text
    for response in (waiting, stored, whole, streamed[-1].response):
        job_id = job_of(response)
        for key in (response_key, result_key, journal_key):
            assert not await store.exists(key(job_id))
        assert await store.hget(job_key(job_id), "state") in {b"succeeded", b"cancelled"}
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.retrieve(response.id)
        assert unknown.value.code == "response_not_found"


@pytest.mark.parametrize("of_a_chat", [False, True])
async def test_what_is_not_a_response_is_not_found(
    client: AsyncOpenAI, fleet: Fleet, pool: str, of_a_chat: bool
) -> None:
    response_id = "resp_x"
    if of_a_chat:
        response_id = f"resp_{(await fleet.submit('hello', pool=pool)).id}"
    responses = client.responses

    async def stream(response_id: str) -> None:
        await responses.retrieve(response_id, stream=True, starting_after=3)

    async def items(response_id: str) -> None:
        await responses.input_items.list(response_id)

    for ask in (responses.retrieve, stream, responses.cancel, responses.delete, items):
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(response_id)
        assert unknown.value.code == "response_not_found"


async def test_an_idempotency_key_gives_the_same_response_again(
    client: AsyncOpenAI, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    asked: Any = {"model": pool, "input": "hello", "background": True}
    key = {"Idempotency-Key": pool}

    one, other = await asyncio.gather(
        *(client.responses.create(**asked, extra_headers=key) for _ in range(2))
    )
    await start_worker()

    assert one.id == other.id
    assert (await client.responses.create(**asked, extra_headers=key)).id == one.id
    assert (await ended(client, one.id)).status == "completed"
    with pytest.raises(openai.ConflictError):
        await client.responses.create(**{**asked, "input": "two"}, extra_headers=key)


async def test_what_is_forgotten_does_not_come_back_by_its_idempotency_key(
    client: AsyncOpenAI, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    asked: Any = {"model": pool, "input": "hello", "extra_headers": {"Idempotency-Key": pool}}
    response = await client.responses.create(**asked)
    await client.responses.delete(response.id)

    for background in (False, True):
        with pytest.raises(openai.APIStatusError) as gone:
            await client.responses.create(**asked, background=background)
        assert gone.value.code == "job_data_lost"

    assert not await store.exists(response_key(job_of(response)))
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_response_whose_result_is_gone_is_deleted(
    client: AsyncOpenAI, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    response = await client.responses.create(model=pool, input="hello")
    await store.delete(result_key(job_of(response)))

    assert (await client.responses.with_raw_response.delete(response.id)).status_code == 200

    assert not await store.exists(response_key(job_of(response)))


async def test_nothing_is_kept_of_what_is_not_stored_however_it_ends(
    client: AsyncOpenAI, start_worker: StartWorker, store: aioredis.Redis, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hello", text="one two three")
    script.add(prompt="fail", failure=FailureCode.INVALID_REQUEST)
    script.add(prompt="hang", text="one two three", hang_after_tokens=2)
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    jobs: list[str] = []

    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as failed:
            await client.responses.create(model=pool, input="fail", store=False, stream=stream)
        jobs.append(failed.value.response.headers["inferfleet-job"])
    for text, last in (("hello", "response.completed"), ("hang", "response.output_text.delta")):
        streamed = await client.responses.create(model=pool, input=text, store=False, stream=True)
        async for event in streamed:
            if event.type == "response.created":
                jobs.append(job_of(event.response))
            if event.type == last:
                await streamed.close()
                break

    async def forgotten() -> bool:
        keys = [key(job) for job in jobs for key in (response_key, result_key, journal_key)]
        return not await store.exists(*keys)

    await eventually(forgotten)
    for job in jobs:
        assert await store.hget(job_key(job), "state") in {b"succeeded", b"failed", b"cancelled"}


async def test_the_items_of_a_request_are_listed(client: AsyncOpenAI, pool: str) -> None:
    image = "data:image/png;base64,AAAA"
    given: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"role": "assistant", "content": "two"},
        {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "three"},
        {"role": "user", "content": [{"type": "input_image", "image_url": image, "detail": "low"}]},
    ]
    response = await client.responses.create(model=pool, input=given, background=True)

    page = await client.responses.input_items.list(response.id, order="asc", limit=2)
    first = (await client.responses.input_items.list(response.id, limit=1)).data
    listed = [each async for each in page]

    kinds = ["message", "message", "function_call", "function_call_output", "message"]
    assert [each.type for each in listed] == kinds
    assert first == listed[-1:]
    raw = await client.responses.with_raw_response.retrieve(response.id)
    assert raw.status_code == 200
    data = [each.to_dict() for each in listed]
    ResponseItemList.model_validate(
        {"data": data, "first_id": "", "last_id": "", "has_more": False, "object": "list"}
    )


async def test_a_refusal_names_the_member(client: AsyncOpenAI, pool: str) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 9}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"store": False, "background": True}, "store"),
        ({"extra_headers": {"Inferfleet-Session": "x"}}, "conversation"),
    ]
    for asked, param in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(**{"model": pool, "input": "hello", **asked})
        assert refused.value.param == param
    for model, stream in (("no/such", False), (f"{pool}-unknown", False), (f"{pool}-unknown", True)):
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.create(model=model, input="hello", stream=stream)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
