"""An index that is deleted while others create it again, and a deletion that is interrupted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.forked import ForkedProcess
from tests.integration.conftest import PATIENCE_S, StartWorker

from inferfleet.producer import Fleet, Index
from inferfleet.schemas.errors import UnknownIndexError
from inferfleet.wire.redis.indexes import BegunDocument, IndexStore
from inferfleet.wire.tasks import cancel_and_wait

DOCUMENTS = [{"id": f"d{number}", "text": f"text {number}"} for number in range(200)]


async def until_gone(index: Index) -> None:
    """Wait until an index is not found, as soon as that is so."""
    with suppress(UnknownIndexError):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await index.get()


async def keys_of(index: Index, store: aioredis.Redis) -> list[Any]:
    return await store.keys(f"inferfleet:index:{{{index.name}:*")


async def test_an_index_that_is_created_while_it_is_deleted_stays(
    fleet: Fleet,
    index: Index,
    pool: str,
    start_worker: StartWorker,
    environment: dict[str, str],
    store: aioredis.Redis,
) -> None:
    await start_worker()
    await index.create(pool=pool)
    await index.add(DOCUMENTS)
    with TemporaryFile() as nothing:
        files: Any = dict.fromkeys(("stdin", "stdout", "stderr"), nothing)
        deletion = ForkedProcess(["index", "delete", index.name], env=environment, **files)
        await until_gone(index)
        deletion.send_signal(signal.SIGSTOP)
    await asyncio.gather(*(fleet.index(index.name).create(pool=pool) for _ in range(3)))
    await index.add(DOCUMENTS[:1])
    deletion.send_signal(signal.SIGCONT)
    assert await deletion.wait() == 0
    assert [hit.document for hit in await index.search("x", k=10)] == ["d0"]
    assert index.name in {record.name for record in await fleet.indexes()}
    assert len(await keys_of(index, store)) == len(["record", "documents", "vectors", "document"])


async def test_a_document_that_is_added_while_it_is_removed_stays(
    index: Index, pool: str, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_worker()
    await index.create(pool=pool)
    await index.add(DOCUMENTS[:2])
    dropped, added = asyncio.Event(), asyncio.Event()
    drop = IndexStore.drop

    async def slowly(store: IndexStore, document: BegunDocument, chunks: Iterable[str]) -> None:
        await drop(store, document, chunks)
        dropped.set()
        await added.wait()

    with monkeypatch.context() as slow:
        slow.setattr(IndexStore, "drop", slowly)
        removing = asyncio.create_task(index.remove("d0"))
        await asyncio.wait_for(dropped.wait(), PATIENCE_S)
    await index.add(DOCUMENTS[:1])
    added.set()
    assert await removing
    assert {hit.document for hit in await index.search("x", k=10)} == {"d0", "d1"}
    record = await index.get()
    assert (record.documents, record.chunks) == (2, 2)
    assert await index.remove("d0")
    record = await index.get()
    assert (record.documents, record.chunks) == (1, 1)


async def test_what_an_interrupted_deletion_has_left_is_removed_by_the_next(
    index: Index, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker()
    await index.create(pool=pool)
    await index.add(DOCUMENTS)
    deletion = asyncio.create_task(index.delete())
    await until_gone(index)
    await cancel_and_wait(deletion)
    with pytest.raises(UnknownIndexError):
        await index.search("x")
    assert await keys_of(index, store)
    assert await index.delete()
    assert not await keys_of(index, store)
    assert not await index.delete()
