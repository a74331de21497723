"""What the tests of OpenAI's Responses API share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.integration.conftest import PATIENCE_S, StartGateway

from inferfleet.producer import Fleet, openai_client
from inferfleet.schemas import Endpoint
from inferfleet.worker.engines.simulated import expected_text

Door = Literal["gateway", "queue"]

_event: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


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


def job_of(response: Response) -> str:
    return response.id.removeprefix("resp_")


def checked(response: Response) -> Response:
    """The response, if it has OpenAI's form. The SDK itself takes what it gets."""
    Response.model_validate(response.to_dict())
    return response


async def read(stream: Any, *, count: int | None = None) -> list[Any]:
    """Read events of a stream, and check their form."""
    events: list[Any] = []
    async for event in stream:
        _event.validate_python(event.to_dict())
        events.append(event)
        if len(events) == count:
            await stream.close()
            break
    return events


def numbers(events: Iterable[Any]) -> list[int]:
    return [event.sequence_number for event in events]


def text_of(events: Iterable[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def said(*messages: tuple[str, str], **fields: Any) -> str:
    """What the simulated engine says to a conversation."""
    told = [{"role": role, "content": content} for role, content in messages]
    return expected_text(Endpoint.CHAT, {"messages": told, **fields})


async def until_text(stream: Any, text: str) -> AsyncIterator[Any]:
    """Yield events up to the one with which this text is complete."""
    async for event in stream:
        yield event
        if event.type == "response.output_text.delta":
            text = text.removeprefix(event.delta)
            if not text:
                return


async def ended(client: AsyncOpenAI, response_id: str) -> Response:
    async with asyncio.timeout(PATIENCE_S):
        while (response := await client.responses.retrieve(response_id)).status in {"queued", "in_progress"}:
            await asyncio.sleep(0.01)
    return checked(response)
