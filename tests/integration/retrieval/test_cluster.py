"""Indexes on a Redis Cluster, whose keys are on several masters and move between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.integration.conftest import PATIENCE_S, Connect, RunCommand, StartWorker
from tests.redis_container import Redis8Cluster, running_redis_8_cluster

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.names import index_key
from inferfleet.wire.redis.cluster import slot_of


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Redis8Cluster]:
    with running_redis_8_cluster(request.config) as cluster:
        yield cluster


@pytest.fixture
def services(services: Services, cluster: Redis8Cluster) -> Services:
    return replace(services, redis_url=cluster.url)


@pytest.fixture
async def patient(connect: Connect, pool: str) -> AsyncIterator[Fleet]:
    """A client that waits while a slot moves."""
    async with connect(patience_s=PATIENCE_S) as fleet:
        await fleet.declare_pool(pool)
        yield fleet


def master_of(cluster: Redis8Cluster, name: str) -> int:
    return cluster.owner(slot_of(index_key("default", name)))


async def test_indexes_on_several_masters_are_filled_searched_and_deleted(
    fleet: Fleet,
    cluster: Redis8Cluster,
    start_worker: StartWorker,
    inferfleet: RunCommand,
    pool: str,
) -> None:
    await start_worker()
    names = [f"{pool}-{number}" for number in range(8)]
    assert len({master_of(cluster, name) for name in names}) > 1
    for name in names:
        index = fleet.index(name)
        await index.create(pool=pool)
        await index.add([{"id": name, "text": f"text of {name}"}, {"id": "gone", "text": "other"}])
        assert await index.remove("gone")
    assert {record.name for record in await fleet.indexes()} >= {*names}
    for name in names:
        (hit,) = await fleet.index(name).search(f"text of {name}")
        assert (hit.document, hit.score > 0.99) == (name, True)
    asked: Any = {"index": names[0], "query": "x"}
    job = await fleet.submit("What?", pool=pool, retrieve=asked)
    result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert [each.document for each in result.citations or ()] == names[:1]
    found = await inferfleet("index", "search", names[1], f"text of {names[1]}")
    assert f"text of {names[1]}" in found.out
    for name in names:
        assert await fleet.index(name).delete()
    assert {record.name for record in await fleet.indexes()}.isdisjoint(names)


async def test_an_index_that_moves_to_another_master_is_filled_and_searched_meanwhile(
    patient: Fleet, cluster: Redis8Cluster, start_worker: StartWorker, pool: str
) -> None:
    await start_worker()
    index = patient.index(pool)
    await index.create(pool=pool)
    await index.add([{"id": "first", "text": "first"}])
    source = master_of(cluster, pool)
    target = next(port for port in cluster.ports if port != source)
    slot = slot_of(index_key("default", pool))
    moving = asyncio.create_task(asyncio.to_thread(cluster.move_slot, slot, source=source, target=target))
    documents = 0
    while not moving.done():
        added = await index.add([{"id": f"d{documents}", "text": f"text {documents}"}])
        assert added.chunks == 1
        documents += 1
        assert "first" in {hit.document for hit in await index.search("first", k=100)}
    await moving
    assert master_of(cluster, pool) == target
    assert documents
    assert (await index.get()).documents == documents + 1
    assert (await index.search("first"))[0].document == "first"
    assert await index.delete()
