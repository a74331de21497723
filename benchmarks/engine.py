"""What the queue costs an engine: tokens/s through the fleet ÷ tokens/s of ``AsyncLLM`` called directly.

    make bench-engine                                    on the CPU, with a model of 8 layers × 512
    python benchmarks/engine.py --model DIR --concurrency 64 256 1024 --input 512 --output 256 \\
        --engine-args '{"load_format": "dummy"}'         on a GPU

Both engines are loaded at the same time with the same arguments, each in its own process; they take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from children import Client, end_in_order
from contender import HERE
from contenders.plan import prompt
from machine import benchmark_services

from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint
from inferfleet.schemas.journal import TokensEntry
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings

POOL = "bench-engine"
LOAD_TIMEOUT_S = 300
ALONE = 6
"""Requests one after the other, for the time to the first token."""

CPU_ARGUMENTS = {"dtype": "float32", "block_size": 32, "enforce_eager": True, "seed": 0}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a folder; without it, a model of 8 layers × 512 is made")
    parser.add_argument("--engine-args", type=json.loads, default=None, metavar="JSON")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16])
    parser.add_argument("--input", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    end_in_order()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory(prefix="inferfleet-engine-") as folder, benchmark_services() as services:
        engine: dict[str, Any] = {
            "model": arguments.model or str(build_model(Path(folder) / "model")),
            "engine_args": {"max_model_len": arguments.input + arguments.output}
            | (CPU_ARGUMENTS if arguments.engine_args is None else arguments.engine_args),
            "max_running": max(arguments.concurrency),
            "input_tokens": arguments.input,
            "output_tokens": arguments.output,
        }
        settings = WorkerSettings(
            amqp_url=services.amqp_url,
            redis_url=services.redis_url,
            pool=POOL,
            engine="vllm",
            model=engine["model"],
            engine_args=engine["engine_args"],
            max_running=engine["max_running"],
        )
        direct = start_direct(engine, Path(folder) / "direct.log")
        async with WorkerProcesses() as workers:
            worker = workers.start(settings)
            await wait_until_ready([worker], timeout_s=LOAD_TIMEOUT_S)
            client = ProducerSettings(amqp_url=services.amqp_url, redis_url=services.redis_url)
            async with Fleet.connect(client) as fleet:
                rows = [
                    row
                    for together in arguments.concurrency
                    for row in await compare(direct, fleet, engine, together, rounds=arguments.rounds)
                ]
        direct.stop()
    for name, value in summary(rows).items():
        print(f"{name}: {value:,.4g}")
    if arguments.json is not None:
        named = engine | {"model": arguments.model or "8 layers × 512, made-up weights"}
        arguments.json.write_text(json.dumps({"engine": named, "rows": rows}, indent=1) + "\n")


async def compare(
    direct: Client, fleet: Fleet, engine: dict[str, Any], together: int, *, rounds: int
) -> list[dict[str, float]]:
    """Give both the same number of requests, in turns."""
    requests = together * 4
    tokens = requests * engine["output_tokens"]
    rows: list[dict[str, float]] = []
    for number in range(rounds + 1):
        straight = await asyncio.to_thread(direct.order, str(together), requests)
        queued_s = await through_the_fleet(fleet, engine, requests, first=number * requests)
        alone = await asyncio.to_thread(direct.order, "1", ALONE)
        first_s = statistics.median(
            [await first_token_s(fleet, engine, 100_000 + number * ALONE + each) for each in range(ALONE)]
        )
        if number == 0:
            continue  # both were cold
        rows.append(
            {
                "concurrency": together,
                "direct tokens/s": tokens / straight["seconds"],
                "fleet tokens/s": tokens / queued_s,
                "direct first token, ms": alone["first_token_s"] * 1000,
                "fleet first token, ms": first_s * 1000,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


async def through_the_fleet(fleet: Fleet, engine: dict[str, Any], requests: int, *, first: int) -> float:
    """Seconds from the first submission to the last result."""
    started = time.perf_counter()
    jobs = await fleet.submit_many(
        [body(engine, first + number) for number in range(requests)], endpoint=Endpoint.COMPLETIONS, pool=POOL
    )
    results = await fleet.wait_many(jobs)
    seconds = time.perf_counter() - started
    assert all(result.usage.completion_tokens == engine["output_tokens"] for result in results)
    return seconds


async def first_token_s(fleet: Fleet, engine: dict[str, Any], number: int) -> float:
    started = time.perf_counter()
    request = body(engine, number)
    job = await fleet.submit(request, endpoint=Endpoint.COMPLETIONS, pool=POOL, stream=True)
    first = 0.0
    async with aclosing(fleet.stream(job)) as lines:
        async for line in lines:
            if isinstance(line.entry, TokensEntry) and not first:
                first = time.perf_counter() - started
    assert first, "a streamed job had no tokens"
    return first


def body(engine: dict[str, Any], number: int) -> dict[str, Any]:
    token_ids = prompt(number, engine["input_tokens"])
    return {"prompt": token_ids, "max_tokens": engine["output_tokens"], "temperature": 0, "ignore_eos": True}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of each concurrency."""
    found: dict[str, float] = {}
    for together in {row["concurrency"] for row in rows}:
        some = [row for row in rows if row["concurrency"] == together]
        ratios = [row["fleet tokens/s"] / row["direct tokens/s"] for row in some]
        added = [row["fleet first token, ms"] - row["direct first token, ms"] for row in some]
        found[f"{together:g} at once: fleet ÷ direct"] = statistics.median(ratios)
        found[f"{together:g} at once: direct tokens/s"] = statistics.median(
            row["direct tokens/s"] for row in some
        )
        found["first token, added ms"] = statistics.median(added)
    return found


def start_direct(engine: dict[str, Any], log: Path) -> Client:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "vllm_direct.py")],
            env=os.environ | {"BENCH_ENGINE": json.dumps(engine)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    return Client(process, log)


def build_model(folder: Path) -> Path:
    """A Llama of 8 layers × 512 with made-up weights, big enough that computing takes most of the time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    build_tiny_model(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.update(
        {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    asyncio.run(main())
