"""Commands that are sent twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.integration.webhooks.conftest import LaterClock, added, read

from inferfleet.schemas.webhooks import WebhookEvent
from inferfleet.wire.redis.pipeline import CommandPipeline
from inferfleet.wire.redis.webhooks import Claimed, Settled, WebhookStore


@pytest.fixture
def commands(pipeline: CommandPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The commands that a test has sent, to send one again whose reply was lost."""
    sent: list[tuple[Any, ...]] = []
    execute = pipeline.execute

    async def noting(*command: Any) -> Any:
        sent.append(command)
        return await execute(*command)

    monkeypatch.setattr(pipeline, "execute", noting)
    return sent


async def test_a_change_that_is_repeated_after_another_one_changes_nothing(
    store: WebhookStore, tenant: str, pipeline: CommandPipeline, commands: list[tuple[Any, ...]]
) -> None:
    endpoint_id = await added(store, tenant)
    until_ms = store.clock.now_ms() + 1_000_000
    await store.change(tenant, endpoint_id, {"name": "a"}, secret="whsec_2", old_secret_until_ms=until_ms)
    repeated = commands[-1]
    await store.change(tenant, endpoint_id, {"name": "b"}, secret="whsec_3", enabled=False)

    assert await pipeline.execute(*repeated) == 1

    endpoint = await read(store, endpoint_id)
    assert (endpoint.name, endpoint.secret, endpoint.old_secret) == ("b", "whsec_3", "")
    for number in range(20):
        assert await store.change(tenant, endpoint_id, {"name": str(number)})
    assert (await read(store, endpoint_id)).name == "19"


async def test_a_failure_that_has_disabled_an_endpoint_says_so_again(
    store: WebhookStore,
    clock: LaterClock,
    tenant: str,
    pipeline: CommandPipeline,
    commands: list[tuple[Any, ...]],
) -> None:
    endpoint_id = await added(store, tenant)
    event = WebhookEvent("job.succeeded", "j", 1)
    await store.enter(tenant, event, most=10)
    retry_ms = store.clock.now_ms() + 1000
    settle = partial(
        store.settle, endpoint_id, Claimed(0, event), failure="it answers 410", retry_ms=retry_ms
    )
    assert await settle() is Settled.DISABLED

    assert await pipeline.execute(*commands[-1]) == b"disabled"

    clock.later_s += 1
    assert await settle() is Settled.PAST
