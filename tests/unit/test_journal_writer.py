"""The journal writer: when it looks at its runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.journal import JournalWriter


async def test_timers_run_only_while_jobs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[float] = []
    sleep = asyncio.sleep

    async def set_timer(seconds: float) -> None:
        timers.append(seconds)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "sleep", set_timer)
    unused: Any = None
    run: Any = object()
    writer = JournalWriter(records=unused, histories=unused, settings=WorkerSettings(), hooks=unused)
    writing = [asyncio.create_task(writer.write_streamed()), asyncio.create_task(writer.write_all())]
    writer.follow(run)
    writer.release(run)
    await sleep(0)
    assert timers == []

    writer.follow(run)
    await sleep(0)
    await sleep(0)
    assert len(timers) == len(writing)

    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
