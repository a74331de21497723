"""A run of a batch that has bad luck with the storage, or with other gateways' settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.gateway_batches.conftest import StuckStorage, order

from inferfleet.gateway.batches import output
from inferfleet.gateway.batches.output import ANSWERS, Parts
from inferfleet.gateway.batches.run import BatchRun, folder_of
from inferfleet.gateway.batches.storage import Storage, StorageError
from inferfleet.gateway.gateway import Gateway
from inferfleet.producer.background import background
from inferfleet.producer.batch.files import ID_PREFIX, LineSet
from inferfleet.producer.batch.line_ids import line_job_id, new_batch_id
from inferfleet.schemas import Endpoint
from inferfleet.schemas.batch import (
    BatchOrder,
    BatchOutputLine,
    BatchRecord,
    BatchResponse,
    BatchState,
)
from inferfleet.wire.redis.batches import BatchLostError


class SlowBucket(Storage):
    """A storage whose first file is there only once ``late`` is set. The last to be there counts."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.began = asyncio.Event()
        self.late = Event()
        self.there = asyncio.Event()

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        loop = self._loop
        first = not self.began.is_set()
        loop.call_soon_threadsafe(self.began.set)
        content: list[bytes] = []
        yield content
        if first:
            self.late.wait()
        with super().writing(name) as file:
            file.write(b"".join(content))
        if first:
            loop.call_soon_threadsafe(self.there.set)

    def write(self, name: str, file: Any, content: bytes) -> None:
        file.append(content)

    async def apart(self, call: Any, *arguments: Any) -> Any:
        self._loop = asyncio.get_running_loop()
        return await super().apart(call, *arguments)


@pytest.fixture
async def bucket(tmp_path: Path) -> AsyncIterator[SlowBucket]:
    bucket = SlowBucket(str(tmp_path))
    yield bucket
    bucket.late.set()
    bucket.close()


async def test_a_part_that_was_given_up_replaces_no_later_one(
    bucket: SlowBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PART_S", 0.0)
    batch_id = new_batch_id()
    parts = Parts(bucket, batch_id, folder="parts", runner="r", lines=20, last=20)

    def answer(*numbers: int) -> None:
        for number in numbers:
            line_id = ID_PREFIX + line_job_id(batch_id, number)
            response = BatchResponse(request_id="x", body={})
            parts.append(BatchOutputLine(id=line_id, custom_id=str(number), response=response))

    answer(*range(1, 11))
    async with background(parts.keep_storing()):
        await bucket.began.wait()
        answer(*range(11, 21))
    await parts.store()
    bucket.late.set()
    await bucket.there.wait()

    assert parts.join(ANSWERS, SimpleNamespace(write=lambda _: None), LineSet(20)) == 20


@pytest.mark.parametrize(
    "body",
    [
        {"usage": {"prompt_tokens": "5", "completion_tokens": 2}},
        {"usage": {"prompt_tokens": None, "completion_tokens": [1], "total_tokens": {}}},
        {"usage": "none"},
        {},
    ],
)
async def test_an_answer_whose_usage_is_no_number_is_stored_and_read_again(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    """Else the batch could neither go on nor be cancelled."""
    storage, batch_id = Storage(str(tmp_path)), new_batch_id()

    def parts() -> Parts:
        return Parts(storage, batch_id, folder="parts", runner="r", lines=2, last=2)

    written = parts()
    for number, answer in ((1, body), (2, {"usage": {"prompt_tokens": 3, "completion_tokens": 4}})):
        line_id = ID_PREFIX + line_job_id(batch_id, number)
        response = BatchResponse(request_id="x", body=answer)
        written.append(BatchOutputLine(id=line_id, custom_id=str(number), response=response))
    await written.store()
    read = parts()
    await read.take_up()

    assert (written.progress.completed, written.progress.input_tokens) == (2, 3)
    assert read.progress == written.progress
    storage.close()


async def test_a_line_that_is_not_of_the_batch_is_ignored(tmp_path: Path) -> None:
    storage, batch_id = Storage(str(tmp_path)), new_batch_id()
    own = [ID_PREFIX + line_job_id(batch_id, number) for number in (1, 2)]
    ids = [own[0], ID_PREFIX + line_job_id(new_batch_id(), 2), own[1]]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f"{ANSWERS}-r-1").write_text(
        "".join(json.dumps({"id": each}) + "\n" for each in ids)
    )
    # Its input has one line.
    parts = Parts(storage, batch_id, folder="parts", runner="r", lines=1, last=1)
    await parts.take_up()

    assert parts.progress.completed == 1
    written: list[bytes] = []
    assert parts.join(ANSWERS, SimpleNamespace(write=written.append), LineSet(1)) == 1
    assert [json.loads(each)["id"] for each in written] == own[:1]
    storage.close()


class Records:
    """Has the changes of a batch. Another gateway has it from ``lost`` changes of its state on."""

    def __init__(self, *, lost: int = 100) -> None:
        self.states: list[BatchState] = []
        self.lost = lost

    def now_ms(self) -> int:
        return 0

    async def change(self, *_: Any, state: BatchState | None = None, **__: Any) -> BatchState:
        if state is not None:
            self.states.append(state)
        if len(self.states) == self.lost:
            raise BatchLostError
        return state or BatchState.IN_PROGRESS


def running(record: BatchRecord, records: Records, storage: Storage) -> BatchRun:
    settings = SimpleNamespace(max_body_bytes=1 << 20, max_batch_lines=10, batch_in_flight=5)
    gateway = SimpleNamespace(batches=records, settings=settings)
    return BatchRun(
        record,
        runner="x",
        gateway=cast("Gateway", gateway),
        files=cast("Any", SimpleNamespace(storage=storage)),
    )


def write_input(folder: Path, batch: BatchOrder, *, lines: int) -> None:
    path = folder / folder_of(batch.id) / "input"
    path.parent.mkdir(parents=True)
    line = {"method": "POST", "url": Endpoint.CHAT, "body": {}}
    path.write_text("".join(json.dumps({**line, "custom_id": str(n)}) + "\n" for n in range(lines)))


async def test_a_batch_does_not_end_while_lines_are_in_no_part(tmp_path: Path) -> None:
    batch = order()
    write_input(tmp_path / "storage", batch, lines=3)
    records = Records()
    storage = Storage(str(tmp_path / "storage"))
    run = running(BatchRecord(order=batch, state=BatchState.FINALIZING), records, storage)
    found = await run._examine(tmp_path)
    parts = Parts(storage, run._batch_id, folder="parts", runner="r", lines=3, last=3)

    with pytest.raises(StorageError, match="no part"):
        await run._finalize(found, parts, BatchState.COMPLETED)

    assert records.states == [BatchState.FINALIZING]
    storage.close()


@pytest.mark.parametrize("state", [BatchState.IN_PROGRESS, BatchState.FINALIZING])
async def test_a_batch_that_has_begun_does_not_fail_where_its_input_is_missing(
    tmp_path: Path, state: BatchState
) -> None:
    records, storage = Records(), Storage(str(tmp_path / "not mounted"))
    run = running(BatchRecord(order=order(), state=state), records, storage)

    with pytest.raises(StorageError, match="deleted"):
        await run._advance(tmp_path)

    assert records.states == []
    storage.close()


async def test_a_batch_that_has_begun_goes_on_whatever_the_settings(tmp_path: Path) -> None:
    batch = order()
    write_input(tmp_path, batch, lines=11)
    records, storage = Records(lost=1), Storage(str(tmp_path))
    run = running(BatchRecord(order=batch, state=BatchState.IN_PROGRESS), records, storage)

    with pytest.raises(BatchLostError):
        await run._advance(tmp_path)

    assert records.states == [BatchState.IN_PROGRESS]
    storage.close()


async def test_the_end_of_a_batch_is_told_once_the_storage_works(tmp_path: Path) -> None:
    told: list[Any] = []

    async def tell(*event: Any) -> None:
        told.append(event)

    async def read(*_: Any, **__: Any) -> BatchRecord:
        return BatchRecord(order=order(), state=BatchState.FAILED, since_ms={BatchState.FAILED: 1})

    records = Records()
    run = running(BatchRecord(order=order()), records, cast("Storage", StuckStorage()))
    run._gateway = cast("Gateway", SimpleNamespace(webhooks=SimpleNamespace(tell=tell)))
    records.read = read  # type: ignore[attr-defined]

    with pytest.raises(StorageError):
        await run._conclude()

    assert told == []
