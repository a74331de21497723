"""A long batch over HTTP whose gateways and workers are killed at random, on private services.

    python benchmarks/batch_killed.py 100000 --kills 20

Every few seconds a gateway or a worker gets SIGKILL, and another one starts in its place. At the end each
line must have exactly one answer, the right one, from the only job that it ever had. Prints how long the
batch took, and the peak resident memory of a gateway and of a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import process_tree
import redis.asyncio as aioredis
from children import Worker, end_in_order
from machine import benchmark_services
from over_http import POOL, prefixed, process, urls

from inferfleet.gateway.batches.run import uuid_of
from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.producer.batch.line_ids import line_job_id
from inferfleet.schemas import Endpoint
from inferfleet.schemas.names import job_key
from inferfleet.worker.engines.simulated import expected_text

GATEWAYS = WORKERS = 2
TOKENS = 8
AT_ONCE = 1000


@dataclass
class Member:
    """A gateway or a worker, in whose place another one starts when it is killed."""

    kind: str
    start: Callable[[], Worker]
    running: Worker
    peaks_mb: dict[str, float]
    killed: Counter[str]

    def measure(self) -> None:
        """Note the peak of its memory so far."""
        largest = max(process_tree.peak_rss_mb(self.running.pid), default=0.0)
        self.peaks_mb[self.kind] = max(self.peaks_mb.get(self.kind, 0.0), largest)

    def kill(self) -> None:
        """Kill it, and start another one."""
        assert not self.running.ended, f"a {self.kind} has ended by itself"
        self.measure()
        os.killpg(self.running.pid, signal.SIGKILL)
        self.running.stop()
        self.killed[self.kind] += 1
        self.running = self.start()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("lines", type=int)
    parser.add_argument("--kills", type=int, default=20, help="the most processes to kill")
    parser.add_argument("--every", type=float, default=10.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    end_in_order()
    with (
        tempfile.TemporaryDirectory(prefix="inferfleet-batch-") as name,
        benchmark_services() as services,
        ExitStack() as stack,
    ):
        folder, peaks_mb, killed = Path(name), dict[str, float](), Counter[str]()
        ports = [free_port() for _ in range(GATEWAYS)]
        starts = [("gateway", gateway(stack, services, folder, port)) for port in ports]
        starts += [("worker", worker(stack, services, folder))] * WORKERS
        members = [Member(kind, start, start(), peaks_mb, killed) for kind, start in starts]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
            fleet = Gateways(session, [f"http://127.0.0.1:{port}/v1" for port in ports])
            began = time.monotonic()
            batch_id = await ordered(fleet, folder, arguments.lines)
            chance = random.Random(arguments.seed)
            next_kill = time.monotonic()
            while (batch := await fleet.json("GET", f"/batches/{batch_id}"))["status"] != "completed":
                assert batch["status"] in {"validating", "in_progress", "finalizing"}, batch
                for member in members:
                    member.measure()
                if time.monotonic() > next_kill and killed.total() < arguments.kills:
                    chance.choice(members).kill()
                    next_kill = time.monotonic() + chance.uniform(0, 2 * arguments.every)
                    print(f"{time.monotonic() - began:.0f} s", batch["request_counts"], file=sys.stderr)
                await asyncio.sleep(1)
            took_s = time.monotonic() - began
            await check(fleet, batch, arguments.lines)
        await check_jobs(services, batch_id, arguments.lines)
    print(f"lines: {arguments.lines:,}, each with its one answer; killed: {dict(killed)}")
    print(f"seconds: {took_s:.0f}, with the upload")
    print("peak MB of a process:", {kind: round(peak) for kind, peak in peaks_mb.items()})


class Gateways:
    """Sends each request to the first gateway that answers."""

    def __init__(self, session: aiohttp.ClientSession, addresses: list[str]) -> None:
        self._session = session
        self._addresses = addresses

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """Return the answer to a request that may be sent again."""
        return json.loads(await self.read(method, path, **options))

    async def read(self, method: str, path: str, **options: Any) -> bytes:
        """Return the bytes of an answer."""
        async with asyncio.timeout(600):
            while True:
                for address in self._addresses:
                    try:
                        async with self._session.request(method, address + path, **options) as answer:
                            content = await answer.read()
                            if answer.status < 500:
                                assert answer.ok, content
                                return content
                    except aiohttp.ClientError:
                        pass
                # The gateways are starting.
                await asyncio.sleep(0.2)


async def ordered(fleet: Gateways, folder: Path, lines: int) -> str:
    """Upload the input, and order the batch. Return its id."""
    await fleet.json("GET", "/models")
    source = folder / "in.jsonl"
    with source.open("w") as file:
        for number in range(lines):
            line = {
                "custom_id": f"line {number}",
                "method": "POST",
                "url": Endpoint.CHAT,
                "body": body(number),
            }
            file.write(json.dumps(line) + "\n")
    with source.open("rb") as content:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content, filename="in.jsonl")
        uploaded = await fleet.json("POST", "/files", data=form)
    order = {"input_file_id": uploaded["id"], "endpoint": Endpoint.CHAT, "completion_window": "24h"}
    made = await fleet.json("POST", "/batches", json=order)
    return str(made["id"])


def body(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": TOKENS}


async def check(fleet: Gateways, batch: Any, lines: int) -> None:
    """Check that each line has one answer, its own."""
    counts = {"total": lines, "completed": lines, "failed": 0}
    assert batch["request_counts"] == counts, batch
    content = await fleet.read("GET", f"/files/{batch['output_file_id']}/content")
    answered = set[str]()
    for raw in content.splitlines():
        line = json.loads(raw)
        name = line["custom_id"]
        assert name not in answered, f"{name} is answered twice"
        answered.add(name)
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        assert said == expected_text(Endpoint.CHAT, body(int(name.split()[1]))), name
    assert len(answered) == lines


async def check_jobs(services: Services, batch_id: str, lines: int) -> None:
    """Check that no line has had a second job."""
    redis = aioredis.from_url(services.redis_url)
    for first in range(1, lines + 1, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, lines + 1))
        for attempt, there in ((0, len(numbers)), (1, 0)):
            keys = [job_key(line_job_id(uuid_of(batch_id), number, attempt)) for number in numbers]
            assert await redis.exists(*keys) == there, f"lines from {first}: try {attempt}"
    await redis.aclose()


def gateway(stack: ExitStack, services: Services, folder: Path, port: int) -> Callable[[], Worker]:
    settings = {"FILES_URL": str(folder / "files"), "POOL": POOL, "LOG_LEVEL": "WARNING"}
    return _starts(stack, ["gateway", "--http-port", str(port)], services, folder, settings)


def worker(stack: ExitStack, services: Services, folder: Path) -> Callable[[], Worker]:
    engine = {"ENGINE": "simulated", "ENGINE_ARGS": json.dumps({"speed": 0}), "LEASE_S": "5"}
    settings = {**engine, "POOL": POOL, "MAX_RUNNING": "64", "LOG_LEVEL": "WARNING"}
    return _starts(stack, ["worker", "--http-port", "0"], services, folder, settings)


def _starts(
    stack: ExitStack, words: list[str], services: Services, folder: Path, settings: dict[str, str]
) -> Callable[[], Worker]:
    def start() -> Worker:
        command = [sys.executable, "-P", "-m", "inferfleet.cli", *words]
        log = folder / f"{words[0]}-{time.monotonic_ns()}.log"
        return stack.enter_context(process(command, log, {**urls(services), **prefixed(settings)}))

    return start


if __name__ == "__main__":
    asyncio.run(main())
