"""A reader of a journal that is written anew while it looks at it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.patience import PATIENCE_S

from inferfleet.producer.journal_view import BEGINNING
from inferfleet.producer.reader import Reader
from inferfleet.schemas import JobState, JournalEntry
from inferfleet.schemas.journal import FinishedEntry
from inferfleet.schemas.names import journal_key

JOB_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
END = FinishedEntry(at=datetime.now(UTC), attempt=1, state=JobState.SUCCEEDED)
LINE_ID = b"5-0"


class EmptiedThenWritten:
    """Records in a Redis that was empty at the first look, and had a whole journal at the second."""

    async def lines(self, job_id: str, *, after: bytes) -> list[Any]:
        return []

    async def last_line(self, job_id: str) -> tuple[bytes, JournalEntry]:
        return LINE_ID, END


class AnsweringPipeline:
    """Takes every command."""

    def enqueue(self, *command: object) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.set_result(None)
        return answer


class OneJournal:
    """Has the whole journal for whoever is still before its end."""

    async def read(self, positions: Mapping[bytes, bytes]) -> list[Any]:
        key = journal_key(JOB_ID).encode()
        if positions.get(key) == BEGINNING.partition(":")[0].encode():
            return [(key, [(LINE_ID, {b"entry": END.model_dump_json().encode()})])]
        await asyncio.sleep(0)
        return []


async def test_a_reader_that_looked_while_the_journal_was_lost_still_gets_its_end() -> None:
    reader = Reader(
        blocked=OneJournal(),  # type: ignore[arg-type]
        pipeline=AnsweringPipeline(),  # type: ignore[arg-type]
        records=EmptiedThenWritten(),  # type: ignore[arg-type]
        client_id="client",
        state_check_interval_s=60.0,
    )
    reading = asyncio.create_task(reader.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            entries = [line.entry async for line in reader.follow(JOB_ID, after=BEGINNING)]
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert entries == [END]
