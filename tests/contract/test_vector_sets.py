"""Whether a Redis has vector sets, and what is said where it has none."""

from __future__ import annotations

import redis.asyncio as aioredis
from tests.stores import running_pipeline

from inferfleet.local.services import Services
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.retrieval import IndexOptions
from inferfleet.wire.redis.indexes import IndexStore


async def test_an_index_needs_vector_sets_and_a_redis_without_them_is_named_with_its_version(
    contract_services: Services, store: aioredis.Redis
) -> None:
    version = (await store.info()).get("redis_version", "")
    told = ""
    async with running_pipeline(contract_services.redis_url, patience_s=5) as pipeline:
        try:
            await IndexStore(pipeline, name="docs", tenant="acme").create(IndexOptions(pool="embed"))
        except ConfigurationError as error:
            told = str(error)
    if version and int(version.partition(".")[0]) >= 8:
        assert told == ""
    else:
        # The embedded one has no version.
        said = f"this is Redis {version}" if version else "this server says no version"
        assert f"needs the vector sets of Redis 8, and {said}: " in told
