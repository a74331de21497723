"""A batch whose command and whose workers are killed, again and again, at points that nobody has chosen."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.conftest import WAIT_S, ends, prompt, restarts
from tests.forked import ForkedProcess

from inferfleet.local.chaos.harness import Harness
from inferfleet.producer.batch import batch_status
from inferfleet.producer.batch.files import record_path
from inferfleet.producer.batch.line_ids import line_job_id
from inferfleet.schemas import Endpoint
from inferfleet.schemas.names import job_key
from inferfleet.worker.engines.simulated import expected_text

LINES = 240
KILLS = 6

pytestmark = pytest.mark.usefixtures("fleet")  # declares the pool


class Command:
    """``inferfleet batch run``, which can be started again with the same words."""

    def __init__(self, harness: Harness, folder: Path) -> None:
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self._words = ["batch", "run", str(self.source), "-o", str(self.output), "--pool", harness.pool]
        # So that few answers are there at once when it starts again.
        self._words += ["--max-in-flight", "20"]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")},
            "INFERFLEET_AMQP_URL": harness.services.amqp_url,
            "INFERFLEET_REDIS_URL": harness.services.redis_url,
        }
        self._log = folder / "batch.log"
        self._started: list[ForkedProcess] = []

    def start(self) -> ForkedProcess:
        with self._log.open("ab") as log:
            self._started.append(ForkedProcess(self._words, env=self._environment, stdout=log, stderr=log))
        return self._started[-1]

    async def ends(self) -> int:
        return await asyncio.wait_for(self._started[-1].wait(), WAIT_S)

    def log(self) -> str:
        return self._log.read_text()

    async def close(self) -> None:
        for process in self._started:
            process.kill()
            await process.wait()

    async def has_begun(self) -> bool:
        return record_path(self.output).exists()

    def answers(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def texts(self) -> dict[str, str]:
        """The answers, of which no line has two."""
        lines = list(map(json.loads, self.output.read_text().splitlines()))
        assert len({line["custom_id"] for line in lines}) == len(lines)
        return {
            line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines
        }

    async def until_answers(self, harness: Harness, number: int) -> None:
        async def answered() -> bool:
            return self.answers() >= number

        await harness.until(answered, what=f"{number} lines are answered")


@pytest.fixture
async def command(harness: Harness, tmp_path: Path) -> AsyncIterator[Command]:
    command = Command(harness, tmp_path)
    yield command
    await command.close()


def bodies(count: int) -> dict[str, dict[str, Any]]:
    return {f"request {number}": prompt(f"question {number}", tokens=16) for number in range(count)}


def write(source: Path, bodies: dict[str, dict[str, Any]]) -> None:
    with source.open("w") as file:
        for custom_id, body in bodies.items():
            line = {"custom_id": custom_id, "method": "POST", "url": Endpoint.CHAT, "body": body}
            file.write(json.dumps(line) + "\n")


def answers(asked: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {custom_id: expected_text(Endpoint.CHAT, body) for custom_id, body in asked.items()}


async def test_every_line_has_its_one_answer_whoever_is_killed(harness: Harness, command: Command) -> None:
    # Given a batch, and two workers
    asked = bodies(LINES)
    write(command.source, asked)
    members = await harness.workers(2, max_running=8)
    chance = random.Random(harness.pool)

    # When its command is killed at random points, and a worker every other time
    killed = 0
    for number in range(KILLS):
        process = command.start()
        if number == 0:
            await harness.until(command.has_begun, what="the batch begins")
        else:
            await command.until_answers(harness, command.answers() + chance.randint(1, 20))
        process.kill()
        killed += await command.ends() == -signal.SIGKILL
        if number % 2:
            await members.pop(0).crash()
            members.append(await harness.worker(max_running=8))
    # A busy machine may let it end before.
    assert killed > 1

    # Then the same command completes it: every line is answered once, by the one job that it has
    command.start()
    assert await command.ends() == 0, command.log()
    assert command.texts() == answers(asked)
    batch_id = batch_status(command.output).record.id
    for line in range(1, LINES + 1):
        journal = await harness.journal(line_job_id(batch_id, line))
        assert len(ends(journal)) == 1
        assert not restarts(journal)
        assert not await harness.redis.exists(job_key(line_job_id(batch_id, line, 1)))


async def test_a_batch_outlives_rabbitmq_and_redis(harness: Harness, command: Command) -> None:
    # Given a batch that goes on
    asked = bodies(80)
    write(command.source, asked)
    await harness.worker(max_running=8)
    process = command.start()
    await command.until_answers(harness, 10)

    # When both services are killed and come back with their data
    await harness.restart_broker()
    assert process.poll() is None, command.log()
    await harness.restart_store()
    assert process.poll() is None, command.log()

    # Then the same run of the command completes it
    assert await command.ends() == 0, command.log()
    assert command.texts() == answers(asked)
