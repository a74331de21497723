"""A client of one gateway, and what it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    RunningGateway,
    StartGateway,
)

from inferfleet.producer import Fleet

CHAT = "/v1/chat/completions"


class Client(httpx2.AsyncClient):
    """Talks to one gateway, as any program would."""

    def __init__(self, gateway: RunningGateway) -> None:
        super().__init__(base_url=gateway.url, timeout=PATIENCE_S)


@pytest.fixture
async def http(fleet: Fleet, start_gateway: StartGateway) -> AsyncIterator[Client]:
    async with Client(await start_gateway()) as client:
        yield client


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def read_events(
    client: Client,
    url: str,
    *,
    after: str | None = None,
    count: int | None = None,
    begun: asyncio.Event | None = None,
) -> list[tuple[str, str, dict[str, Any]]]:
    """Read id, kind and data of the events of a stream, at most ``count``. Its answer sets ``begun``."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    headers = {} if after is None else {"Last-Event-ID": after}
    async with client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        if begun is not None:
            begun.set()
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                found.append((fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])))
            fields = {}
            if len(found) == count:
                break
    return found


def text_of(events: list[tuple[str, str, dict[str, Any]]]) -> str:
    return "".join(chunk["text"] for _, kind, data in events if kind == "tokens" for chunk in data["chunks"])
