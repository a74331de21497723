"""The files and batches of one tenant, and those of others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import (
    RunningGateway,
    StartGateway,
    StartWorker,
    eventually,
)
from tests.integration.files_and_batches.conftest import (
    begin,
    client_of,
    request,
    until,
)

from inferfleet.producer import Fleet
from inferfleet.schemas.names import tenant_open_batches_key


async def test_what_belongs_to_another_tenant_does_not_exist(
    gateway: RunningGateway, start_worker: StartWorker, tenants: str
) -> None:
    await start_worker()
    async with client_of(gateway, tenant=tenants) as mine, client_of(gateway) as other:
        batch = await begin(mine, request("a"))
        done = await until(mine, batch, "completed")
        assert done.output_file_id is not None

        for file_id in (batch.input_file_id, done.output_file_id):
            for call in (other.files.retrieve, other.files.content, other.files.delete):
                foreign, unknown = [await refusal(call(each)) for each in (file_id, file_id[:-4] + "0000")]
                assert foreign.replace(file_id, "") == unknown.replace(file_id[:-4] + "0000", "")
        for batch_call in (other.batches.retrieve, other.batches.cancel):
            assert "there is no batch" in await refusal(batch_call(batch.id))
        with pytest.raises(openai.NotFoundError):
            await other.batches.create(
                input_file_id=batch.input_file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
        assert batch.id not in [each.id async for each in other.batches.list()]
        assert [each.id async for each in mine.batches.list()] == [batch.id]
        assert [each.id async for each in mine.files.list()] == [done.output_file_id, batch.input_file_id]


async def refusal(call: Awaitable[Any]) -> str:
    with pytest.raises(openai.NotFoundError) as refused:
        await call
    return refused.value.message


async def test_calls_at_the_same_moment_open_no_more_batches_than_a_tenant_may(
    start_gateway: StartGateway, store: aioredis.Redis, pool: str, storage: Path, tenants: str
) -> None:
    gateways = [
        await start_gateway(files_url=str(storage), max_batches=2, batches_at_once=0) for _ in range(2)
    ]
    async with client_of(gateways[0], tenant=tenants) as one, client_of(gateways[1], tenant=tenants) as other:
        told = await asyncio.gather(
            *(begin(client, request("a")) for client in (one, other) * 4), return_exceptions=True
        )
        refused = [each for each in told if isinstance(each, openai.PermissionDeniedError)]
        assert len(refused) == 6, told
        assert len([each async for each in one.batches.list()]) == 2

        # A gateway that reserves a place and dies keeps it for a minute.
        key = tenant_open_batches_key(tenants)
        places: Any = await store.zrange(key, 0, 0)
        await store.zrem(key, *places)
        await store.zadd(key, {"batch_lost": int((await store.time())[0]) * 1000})
        with pytest.raises(openai.PermissionDeniedError):
            await begin(one, request("a"))
        await store.zadd(key, {"batch_lost": 0})
        assert await begin(one, request("a"))


async def test_a_tenant_has_no_more_open_batches_than_it_may(
    start_gateway: StartGateway, fleet: Fleet, pool: str, storage: Path, tenants: str
) -> None:
    gateway = await start_gateway(files_url=str(storage), max_batches=2, batches_at_once=1)
    async with client_of(gateway, tenant=tenants) as client, client_of(gateway) as other:
        batches = [await begin(client, request("a")) for _ in range(2)]
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await begin(client, request("a"))
        assert refused.value.code == "too_many_batches"
        batches.append(await begin(other, request("a")))

        # The other one has the only place, and cancelling needs none.
        await client.batches.cancel(batches[1].id)
        await until(client, batches[1], "cancelled")

        async def accepted() -> bool:
            with suppress(openai.PermissionDeniedError):
                batches.append(await begin(client, request("a")))
            return len(batches) == 4

        await eventually(accepted)
