"""Adding documents continues after a kill, and embeds nothing twice."""

from __future__ import annotations

import signal
from pathlib import Path
from tempfile import TemporaryFile

import orjson
import redis.asyncio as aioredis
from tests.forked import ForkedProcess
from tests.integration.conftest import RunCommand, StartWorker, eventually

from inferfleet.producer import Fleet, Index
from inferfleet.producer.retrieval.adding import BATCH_CHUNKS
from inferfleet.schemas.retrieval import Added

CHUNKS = 960


async def test_a_killed_add_continues_and_embeds_no_chunk_twice(
    fleet: Fleet,
    index: Index,
    pool: str,
    start_worker: StartWorker,
    inferfleet: RunCommand,
    environment: dict[str, str],
    store: aioredis.Redis,
    tmp_path: Path,
) -> None:
    file = tmp_path / "documents.jsonl"
    lines = [orjson.dumps({"id": f"d{number}", "text": f"text {number}"}) for number in range(CHUNKS)]
    file.write_bytes(b"\n".join(lines))
    await index.create(pool=pool)
    with TemporaryFile() as nothing:
        adding = ForkedProcess(
            ["index", "add", pool, str(file)],
            env=environment,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
        )
        await start_worker(max_running=1, engine_args={"prefill_tokens_per_s": 8000})

        async def some_are_stored() -> bool:
            return (await index.get()).chunks > 0

        await eventually(some_are_stored)
        adding.send_signal(signal.SIGKILL)
        await adding.wait()
    stored = (await index.get()).chunks
    assert 0 < stored < CHUNKS, "killed in between"

    ended = await inferfleet("index", "add", pool, str(file))
    assert (ended.code, ended.out) == (0, f"{CHUNKS} documents with {CHUNKS} chunks are in {pool}\n")
    assert (await index.get()).chunks == CHUNKS
    records = [key async for key in store.scan_iter("inferfleet:job:{*}", count=1000)]
    ours = [key for key in records if await store.hget(key, "pool") == pool.encode()]
    assert len(ours) == CHUNKS / BATCH_CHUNKS, "no job was made twice"
    assert await index.add(map(orjson.loads, lines)) == Added(documents=CHUNKS, chunks=CHUNKS, embedded=0)
