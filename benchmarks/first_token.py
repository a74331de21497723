"""The first token through a gateway and the queue ÷ straight from vLLM's own server, on the CPU.

    make bench-first-token

Both serve a tiny model and are otherwise idle: one request at a time, to each in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from children import end_in_order
from engine import CPU_ARGUMENTS
from machine import benchmark_services
from over_http import CHAT, POOL, Proxy, gateway, process, until_up

from inferfleet.local.services.free_port import free_port
from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.schemas.settings import WorkerSettings

LOADING_S = 600.0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=10, help="requests of a round to each of them")
    arguments = parser.parse_args()
    end_in_order()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory(prefix="inferfleet-first-") as name, benchmark_services() as services:
        folder = Path(name)
        model = str(build_tiny_model(folder / "model"))
        port = free_port()
        options = ["--model", model, "--served-model-name", POOL, "--host", "127.0.0.1", "--port", str(port)]
        options += [word for name, value in CPU_ARGUMENTS.items() for word in _option(name, value)]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
        settings = WorkerSettings(
            amqp_url=services.amqp_url,
            redis_url=services.redis_url,
            pool=POOL,
            engine="vllm",
            model=model,
            engine_args=CPU_ARGUMENTS | {"served_model_name": POOL},
        )
        async with WorkerProcesses() as workers, aiohttp.ClientSession() as session:
            worker = workers.start(settings)
            with (
                process(command, folder / "server.log", {}) as server,
                gateway(services, folder) as through,
            ):
                straight = Proxy(name="vLLM", url=f"http://127.0.0.1:{port}", process=server)
                await wait_until_ready([worker], timeout_s=LOADING_S)
                for proxy in (through, straight):
                    await until_up(session, proxy, within_s=LOADING_S)
                rows = [
                    await compare(session, through, straight, number, arguments.requests)
                    for number in range(arguments.rounds + 1)
                ]
    # Both are cold in the first one.
    for name in rows[0]:
        print(f"{name}: {statistics.median(row[name] for row in rows[1:]):.3g}")


async def compare(
    session: aiohttp.ClientSession, through: Proxy, straight: Proxy, number: int, requests: int
) -> dict[str, float]:
    """Send requests to both in turn, and return the medians and their ratio."""
    taken: dict[str, list[float]] = {through.name: [], straight.name: []}
    for each in range(requests):
        for proxy in (through, straight):
            words = f"{proxy.name} {number} {each}"
            taken[proxy.name].append(await first_token_s(session, proxy, words) * 1000)
    medians = {name: statistics.median(some) for name, some in taken.items()}
    row = {f"{name}, first token, ms": value for name, value in medians.items()}
    row["ratio"] = medians[through.name] / medians[straight.name]
    print({name: round(value, 2) for name, value in row.items()}, file=sys.stderr)
    return row


async def first_token_s(session: aiohttp.ClientSession, proxy: Proxy, words: str) -> float:
    body: dict[str, Any] = {
        "model": POOL,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 16,
        "ignore_eos": True,
        "stream": True,
    }
    started = time.perf_counter()
    first = 0.0
    async with session.post(proxy.url + CHAT, json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {") and not first:
                (choice,) = json.loads(line[6:])["choices"]
                if choice["delta"].get("content"):
                    first = time.perf_counter() - started
    assert first, "a stream had no text"
    return first


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]


if __name__ == "__main__":
    asyncio.run(main())
