"""A batch over HTTP whose gateways are all killed, and which another gateway continues."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from tests.chaos.conftest import WAIT_S, ends, prompt, restarts
from tests.forked import ForkedProcess

from inferfleet.gateway.batches.run import uuid_of
from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.batch.line_ids import line_job_id
from inferfleet.schemas import Endpoint
from inferfleet.schemas.names import job_key, result_key
from inferfleet.worker.engines.simulated import expected_text

LINES = 120

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool


class Gateways:
    """Gateways as processes, with one folder for files."""

    def __init__(self, harness: Harness, folder: Path) -> None:
        self._harness = harness
        self._folder = folder
        self._numbers = count()
        self._clients: list[AsyncOpenAI] = []
        self._running: list[ForkedProcess] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")},
            "INFERFLEET_AMQP_URL": harness.services.amqp_url,
            "INFERFLEET_REDIS_URL": harness.services.redis_url,
            "INFERFLEET_FILES_URL": str(folder / "storage"),
            "INFERFLEET_POOL": harness.pool,
            "INFERFLEET_BATCH_IN_FLIGHT": "20",
            "INFERFLEET_STATE_CHECK_INTERVAL_S": "0.5",
        }

    async def start(self) -> AsyncOpenAI:
        """Start one, and return a client of it."""
        path = self._folder / f"gateway-{next(self._numbers)}.log"
        with path.open("wb") as log:
            self._running.append(
                ForkedProcess(["gateway", "--http-port", "0"], env=self._environment, stdout=log, stderr=log)
            )
        url = ""

        async def serves() -> bool:
            nonlocal url
            said = [json.loads(line)["message"] for line in path.read_text().splitlines() if line[:1] == "{"]
            url = next((text.split(" on ")[1] for text in said if text.startswith("serving")), "")
            return bool(url)

        await self._harness.until(serves, what="a gateway serves")
        client = AsyncOpenAI(base_url=url, api_key="none", timeout=WAIT_S)
        self._clients.append(client)
        return client

    async def kill(self) -> None:
        """Kill all of them."""
        for process in self._running:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        for client in self._clients:
            await client.close()
        self._running.clear()


@pytest.fixture
async def gateways(harness: Harness, tmp_path: Path) -> AsyncIterator[Gateways]:
    gateways = Gateways(harness, tmp_path)
    yield gateways
    await gateways.kill()


async def test_a_batch_goes_on_when_all_gateways_were_killed(harness: Harness, gateways: Gateways) -> None:
    asked = {f"request {number}": prompt(f"question {number}", tokens=16) for number in range(LINES)}
    lines = [
        {"custom_id": name, "method": "POST", "url": Endpoint.CHAT, "body": body}
        for name, body in asked.items()
    ]
    await harness.workers(1, max_running=8)

    # Given a batch that has begun, and two gateways
    client, _ = await gateways.start(), await gateways.start()
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    async def some_are_done() -> bool:
        return await _ended(harness, batch.id) > LINES // 8

    # When both are killed, and another one starts
    await harness.until(some_are_done, what="some lines are done")
    await gateways.kill()
    assert await _ended(harness, batch.id) < LINES
    client = await gateways.start()

    # Then it goes on, and every line is answered once, by the one job that it has
    async def completed() -> bool:
        return (await client.batches.retrieve(batch.id)).status == "completed"

    await harness.until(completed, what="the batch is completed")
    done = await client.batches.retrieve(batch.id)
    assert done.output_file_id is not None
    answers = list(map(json.loads, (await client.files.content(done.output_file_id)).text.splitlines()))
    assert len(answers) == LINES
    assert {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in answers
    } == {name: expected_text(Endpoint.CHAT, body) for name, body in asked.items()}
    for line in range(1, LINES + 1):
        journal = await harness.journal(line_job_id(uuid_of(batch.id), line))
        assert len(ends(journal)) == 1
        assert not restarts(journal)
        assert not await harness.redis.exists(job_key(line_job_id(uuid_of(batch.id), line, 1)))


async def _ended(harness: Harness, batch_id: str) -> int:
    """Count the lines whose jobs have ended."""
    keys = [result_key(line_job_id(uuid_of(batch_id), line)) for line in range(1, LINES + 1)]
    return int(await harness.redis.exists(*keys))
