"""How the lines of a batch run, on a fleet that only pretends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest

from inferfleet.producer import window
from inferfleet.producer.batch import lines
from inferfleet.producer.batch.line_ids import new_batch_id
from inferfleet.producer.batch.lines import LineRunner, prompt_work
from inferfleet.producer.batch.source import SourceLine
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.window import FIRST_LIMIT
from inferfleet.schemas import Job
from inferfleet.schemas.batch import BatchOutputLine
from inferfleet.schemas.errors import QueueFullError, ServiceRefusedError


class PretendedFleet:
    """Accepts jobs, and never ends one."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.jobs: list[weakref.ref[Job]] = []
        self.called = asyncio.Event()

    async def submit(self, job: Job) -> Job:
        self.jobs.append(weakref.ref(job))
        self.called.set()
        if self.refusal is not None:
            raise self.refusal
        return job

    async def wait(self, _: str) -> None:
        await asyncio.Event().wait()


class Lines:
    """Lines that count how many of them have been read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.read = 0

    def __iter__(self) -> Iterator[SourceLine]:
        for number in range(1, self.number + 1):
            self.read += 1
            yield SourceLine(number, b"a prompt")


def runner(fleet: PretendedFleet, written: list[BatchOutputLine], *, most: int = 1000) -> LineRunner:
    return LineRunner(
        cast("Fleet", fleet),
        batch_id=new_batch_id(),
        read=lambda line: prompt_work(line, options={}),
        read_again=lambda line: line,
        write=written.append,
        max_in_flight=most,
    )


async def stopped(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_line_is_read_when_the_window_has_a_place_for_it() -> None:
    source = Lines(500)
    fleet = PretendedFleet(QueueFullError("full"))
    running = asyncio.create_task(runner(fleet, []).run(iter(source)))
    await fleet.called.wait()
    for _ in range(10):
        await asyncio.sleep(0)

    assert source.read <= FIRST_LIMIT
    await stopped(running)


async def test_what_a_line_asks_is_not_kept_while_its_job_is_in_flight() -> None:
    fleet = PretendedFleet()
    running = asyncio.create_task(runner(fleet, [], most=8).run(iter(Lines(8))))
    while len(fleet.jobs) < 8:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()

    assert not running.done()
    assert [job() for job in fleet.jobs] == [None] * 8
    await stopped(running)


async def test_a_line_that_is_too_large_for_the_broker_is_an_error_also_if_it_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(window, "LONGEST_PAUSE_S", 0.0)
    written: list[BatchOutputLine] = []
    too_large = PretendedFleet(ServiceRefusedError("message size 17 is larger", too_large=True))

    await runner(too_large, written).run(iter(Lines(1)))

    (line,) = written
    assert line.error is not None
    assert line.error.message == "message size 17 is larger"
    assert len(too_large.jobs) == lines.REFUSALS_IN_DOUBT + 1
    with pytest.raises(ServiceRefusedError):
        await runner(PretendedFleet(ServiceRefusedError("no permission")), written).run(iter(Lines(1)))
