"""A password that changes while a worker runs: the next connection uses the new one, and nothing restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import redis.asyncio as aioredis
from tests.patience import PATIENCE_S
from yarl import URL

from inferfleet.local.services import Services
from inferfleet.producer import Fleet
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.worker.engines.simulated import SimulatedEngine
from inferfleet.worker.worker import Worker

USER = "rotating"


class Administrator:
    """Changes passwords at both servers, and cuts the connections that were made with the old ones."""

    def __init__(self, services: Services, store: aioredis.Redis) -> None:
        self._api = f"{services.management_url}/api"
        self._store = store

    async def give_password(self, password: str) -> None:
        user = {"password": password, "tags": ""}
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await self._ask("PUT", f"users/{USER}", json=user)
        await self._ask("PUT", f"permissions/%2F/{USER}", json=everything)
        await self._store.execute_command(
            *("ACL", "SETUSER", USER, "on", "resetpass", f">{password}", "~*", "&*", "+@all")
        )

    async def cut_connections(self) -> None:
        """RabbitMQ names a connection some seconds after it was made."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._ask("GET", f"connections/username/{USER}"):
                await asyncio.sleep(0.1)
        await self._ask("DELETE", f"connections/username/{USER}")
        await self._store.execute_command("CLIENT", "KILL", "USER", USER)

    async def _ask(self, method: str, path: str, **content: Any) -> Any:
        url = URL(f"{self._api}/{path}", encoded=True)
        async with aiohttp.ClientSession() as http, http.request(method, url, **content) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json() if answer.status == 200 else None


class Files:
    """The URLs of the user, as a mounted Secret has them."""

    def __init__(self, folder: Path, services: Services) -> None:
        self._services = services
        self.amqp, self.redis = folder / "amqp-url", folder / "redis-url"

    def write(self, password: str) -> None:
        for file, url in ((self.amqp, self._services.amqp_url), (self.redis, self._services.redis_url)):
            parts = urlsplit(url)
            netloc = f"{USER}:{password}@{parts.hostname}:{parts.port}"
            file.write_text(parts._replace(netloc=netloc).geturl())


async def test_a_running_worker_uses_a_rotated_password_from_its_next_connection_on(
    managed: Services, tmp_path: Path
) -> None:
    pool = f"rotated-{uuid4().hex[:8]}"
    files = Files(tmp_path, managed)
    store = aioredis.Redis.from_url(managed.redis_url)
    administrator = Administrator(managed, store)
    await administrator.give_password("first")
    files.write("first")
    worker = Worker(
        settings=WorkerSettings(
            amqp_url=files.amqp.as_uri(),
            redis_url=files.redis.as_uri(),
            pool=pool,
            engine="simulated",
            http_host="127.0.0.1",
            http_port=0,
        ),
        engine=SimulatedEngine(model="simulated", max_running=4, engine_args={"speed": 0}),
    )
    producer = ProducerSettings(amqp_url=managed.amqp_url, redis_url=managed.redis_url)
    running = asyncio.create_task(worker.run())
    try:
        async with Fleet.connect(producer) as fleet:
            await fleet.declare_pool(pool)
            before = await fleet.wait(await fleet.submit("before", pool=pool), timeout_s=PATIENCE_S)
            await administrator.give_password("second")
            files.write("second")
            await administrator.cut_connections()
            after = await fleet.wait(await fleet.submit("after", pool=pool), timeout_s=PATIENCE_S)
    finally:
        worker.stop()
        await asyncio.wait_for(running, PATIENCE_S)
        await store.aclose()

    assert (before.state, after.state) == ("succeeded", "succeeded")
