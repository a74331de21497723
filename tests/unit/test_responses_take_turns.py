"""Long journals are read beside other requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import pytest

from inferfleet.producer.journal_view import JournalLine
from inferfleet.producer.openai import responses
from inferfleet.producer.openai.response_requests import ResponseRecord, read_response_request
from inferfleet.producer.openai.responses import ResponsesApi
from inferfleet.producer.openai.streams import EventStream
from inferfleet.schemas import JobState, Result, Usage
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import ENTRY_FIELD, FinishedEntry, JournalEntry, TokenChunk, TokensEntry

AT = datetime(2026, 11, 26, 12, tzinfo=UTC)
JOB_ID = new_job_id()
ENTRIES: list[JournalEntry] = [
    *(
        TokensEntry(at=AT, attempt=1, offset=n, chunks=(TokenChunk(token_ids=(1,), text="x"),))
        for n in range(100)
    ),
    FinishedEntry(at=AT, attempt=1, state=JobState.SUCCEEDED, tokens=100),
]


class Job:
    id = JOB_ID
    state = JobState.SUCCEEDED


class Fleet:
    """Has one response, reads nothing from anywhere, and counts how often others have had a turn."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.response_records = self

    async def get(self, job_id: str) -> Job:
        return Job()

    async def read(self, job_id: str) -> bytes:
        given = read_response_request({}, b'{"input": "hello", "model": "tiny"}')
        record = ResponseRecord(created_at=1, shown=given.shown, items=tuple(given.items))
        return record.model_dump_json().encode()

    async def journal(self, job_id: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        self._begin()
        return [
            (b"%d-0" % n, {ENTRY_FIELD.encode(): entry.model_dump_json().encode()})
            for n, entry in enumerate(ENTRIES, start=1)
        ]

    async def stream(self, job_id: str) -> AsyncGenerator[JournalLine]:
        self._begin()
        for n, entry in enumerate(ENTRIES, start=1):
            yield JournalLine(f"{n}-0:{n}", entry)

    async def wait(self, job_id: str) -> Result:
        response = {"model": "tiny", "choices": [{"index": 0, "finish_reason": "stop"}]}
        return Result(
            job_id=JOB_ID,
            state=JobState.SUCCEEDED,
            usage=Usage(prompt_tokens=1, completion_tokens=100),
            response=response,
        )

    def _begin(self) -> None:
        reading = len(self.turns)
        self.turns.append(0)
        call_soon = asyncio.get_running_loop().call_soon

        def turn() -> None:
            self.turns[reading] += 1
            if self.turns[reading] < len(ENTRIES):
                call_soon(turn)

        call_soon(turn)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_journal_leaves_turns_to_other_requests(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(responses, "AT_ONCE_S", 0)
    fleet: Any = Fleet()
    unused: Any = None
    api = ResponsesApi(fleet, unused)

    if stream:
        reply = await api.events(f"resp_{JOB_ID}", starting_after=10**6)
        assert isinstance(reply.content, EventStream)
        assert b"response.completed" in (await reply.content.read() or b"")
        await reply.content.aclose()
    else:
        await api.get(f"resp_{JOB_ID}")

    assert len(fleet.turns) == 1 + stream
    assert all(turns > len(ENTRIES) // 2 for turns in fleet.turns)
