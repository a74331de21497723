"""OpenAI's Responses API with its own SDK, unmodified: through the gateway, and in process on the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from pydantic import BaseModel
from tests.integration.conftest import (
    StartGateway,
    StartWorker,
)
from tests.integration.responses.conftest import (
    Door,
    checked,
    ended,
    job_of,
    numbers,
    read,
    said,
    text_of,
)

from inferfleet.producer import Fleet, SyncFleet, openai_client
from inferfleet.schemas import Endpoint
from inferfleet.schemas.job import Priority
from inferfleet.schemas.names import response_key
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.worker.engines.simulated import expected_text

LOOK_UP: Any = {
    "type": "function",
    "name": "look_up",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}


async def test_a_response_is_the_answer_of_a_chat(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()

    response = await client.responses.create(
        model=pool, input="hello", instructions="be brief", metadata={"a": "b"}, service_tier="flex"
    )

    result = await fleet.wait(job_of(response))
    assert checked(response).output_text == said(("system", "be brief"), ("user", "hello"))
    assert (response.status, response.model, response.instructions) == ("completed", "simulated", "be brief")
    assert response.usage is not None
    assert response.usage.total_tokens == result.usage.total_tokens
    assert (response.metadata, response.service_tier, response.store) == ({"a": "b"}, "flex", True)
    assert (await fleet.get(job_of(response))).priority == Priority.BATCH
    assert await client.responses.retrieve(response.id) == response
    # As long as the result.
    assert 0 < await store.ttl(response_key(job_of(response))) <= 600


async def test_a_stream_says_what_the_response_says(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()

    events = await read(await client.responses.create(model=pool, input="hello", stream=True))

    response = events[-1].response
    assert [event.type for event in events if event.type != "response.output_text.delta"] == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert numbers(events) == list(range(len(events)))
    assert text_of(events) == response.output_text == said(("user", "hello"))
    assert checked(await client.responses.retrieve(response.id)) == response
    async with client.responses.stream(response_id=response.id, starting_after=4) as stream:
        later = [event async for event in stream]
        assert (await stream.get_final_response()).output_text == response.output_text
    assert numbers(later) == numbers(events)[5:]


async def test_a_response_of_the_background_is_read_later_and_its_events_go_on(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    waiting = checked(await client.responses.create(model=pool, input="hello", background=True))
    stream = await client.responses.create(model=pool, input="one", background=True, stream=True)
    first = await read(stream, count=2)
    assert (waiting.status, waiting.output) == ("queued", [])
    assert checked(await client.responses.retrieve(waiting.id)).status == "queued"

    await start_worker()

    assert (await ended(client, waiting.id)).output_text == said(("user", "hello"))
    response_id = first[0].response.id
    rest = await read(await client.responses.retrieve(response_id, stream=True, starting_after=1))
    again = await read(await client.responses.retrieve(response_id, stream=True))
    assert first + rest == again
    assert numbers(again) == list(range(len(again)))
    behind = await client.responses.retrieve(response_id, stream=True, starting_after=numbers(again)[-1])
    assert await read(behind) == []
    # No stream of a reader that lacks something ends without the last event.
    beyond = await client.responses.retrieve(response_id, stream=True, starting_after=10**6)
    assert await read(beyond) == again[-1:]


async def test_a_function_is_called_and_its_result_goes_on_from_the_call(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    asked: Any = {"model": pool, "tools": [LOOK_UP]}

    events = await read(
        await client.responses.create(input="hello", tool_choice="required", stream=True, **asked)
    )
    called = checked(events[-1].response)
    (call,) = called.output
    assert (call.type, call.name, call.arguments, call.status) == (
        "function_call",
        "look_up",
        "{}",
        "completed",
    )
    kinds = [event.type for event in events]
    assert kinds.count("response.function_call_arguments.done") == 1
    assert kinds[3] == "response.output_item.added"

    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "12:00"}
    answer = await client.responses.create(input=[result], previous_response_id=called.id, **asked)

    function = {"name": "look_up", "arguments": "{}"}
    messages = [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "12:00"},
    ]
    tools = [{"type": "function", "function": {k: v for k, v in LOOK_UP.items() if k != "type"}}]
    assert answer.output_text == expected_text(Endpoint.CHAT, {"messages": messages, "tools": tools})
    # The same, if the client keeps the conversation itself.
    items: Any = [{"role": "user", "content": "hello"}, call.to_dict(), result]
    assert (await client.responses.create(input=items, **asked)).output_text == answer.output_text


class Place(BaseModel):
    """A structured answer."""

    city: str


async def test_a_structured_answer_is_parsed(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="tower", text='{"city": "Paris"}')
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))

    whole = await client.responses.parse(model=pool, input="the tower", text_format=Place)
    async with client.responses.stream(model=pool, input="the tower", text_format=Place) as stream:
        streamed = await stream.get_final_response()

    assert whole.output_parsed == streamed.output_parsed == Place(city="Paris")


async def test_an_answer_that_is_cut_is_incomplete(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()

    events = await read(
        await client.responses.create(model=pool, input="hello", max_output_tokens=5, stream=True)
    )

    response = checked(events[-1].response)
    assert (events[-1].type, response.status) == ("response.incomplete", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == said(("user", "hello"), max_tokens=5)
    assert await client.responses.retrieve(response.id) == response


async def test_blocking_code_has_all_of_it(
    door: Door,
    fleet: Fleet,
    start_gateway: StartGateway,
    start_worker: StartWorker,
    producer_settings: Callable[..., ProducerSettings],
    pool: str,
) -> None:
    await start_worker()
    url = f"{(await start_gateway()).url}/v1"

    def ask() -> None:
        connected = SyncFleet.connect(producer_settings())
        made = (
            openai_client(connected, pool=pool, max_retries=0)
            if door == "queue"
            else openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        )
        with connected, made as client:
            with client.responses.stream(model=pool, input="hello") as stream:
                whole = stream.get_final_response()
            response = client.responses.create(model=pool, input="hello", background=True)
            events = list(client.responses.retrieve(response.id, stream=True, starting_after=2))
            assert events[-1].type == "response.completed"
            assert events[-1].response.output_text == whole.output_text == said(("user", "hello"))
            assert client.responses.retrieve(response.id) == events[-1].response
            client.responses.delete(response.id)

    await asyncio.to_thread(ask)
