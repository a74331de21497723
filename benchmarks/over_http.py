"""What a gateway costs and holds, on private services of this machine.

    python benchmarks/over_http.py requests    requests per second of its CPU, beside LiteLLM's proxy
    python benchmarks/over_http.py streams     memory of 2,000 open streams, and whether each is complete

``benchmarks/setup-litellm`` installs LiteLLM. Both proxies are one process with one event loop, and get the
same requests from the same client, in turns. Behind each of them is something that answers at once: behind
the gateway the queue and a worker with an engine that does nothing, behind LiteLLM an HTTP server. Only the
CPU of the proxy itself is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import process_tree
from children import Worker, end_in_order
from contender import HERE
from contenders.plan import PAYLOAD
from machine import benchmark_services

from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.schemas import Endpoint
from inferfleet.worker.engines.simulated import expected_text

LITELLM = Path(__file__).parent.parent / ".venv-litellm" / "bin" / "litellm"
POOL = "bench"
STARTING_S = 120.0
CHAT = Endpoint.CHAT.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A running proxy."""

    name: str
    url: str
    process: Worker


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["requests", "streams"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="requests of a round to each proxy")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=20, help="tokens of a stream")
    parser.add_argument("--step", type=float, default=3.0, help="seconds between the tokens of a stream")
    arguments = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="inferfleet-http-") as folder, benchmark_services() as services:
        if arguments.what == "requests":
            await compare(services, Path(folder), arguments)
        else:
            await hold_open(services, Path(folder), arguments)


async def compare(services: Services, logs: Path, arguments: argparse.Namespace) -> None:
    """Give both proxies the same requests, in turns, and print the figures of the rounds and the medians."""
    with ExitStack() as stack:
        stack.enter_context(no_op_worker(services, logs))
        ours = stack.enter_context(gateway(services, logs))
        theirs = stack.enter_context(litellm(stack.enter_context(upstream(logs)), logs))
        async with aiohttp.ClientSession() as session:
            for proxy in (ours, theirs):
                await until_up(session, proxy)
        rows: list[dict[str, float]] = []
        for number in range(arguments.rounds + 1):
            row: dict[str, float] = {}
            for proxy in (ours, theirs):
                row |= await measured(proxy, arguments.requests, arguments.concurrency)
            row["ratio"] = row["inferfleet, per CPU s"] / row["LiteLLM, per CPU s"]
            # Both are cold in the first one.
            if number:
                rows.append(row)
                print({name: round(value, 2) for name, value in row.items()}, file=sys.stderr)
    for name in rows[0]:
        print(f"{name}: {statistics.median(row[name] for row in rows):,.4g}")


async def measured(proxy: Proxy, requests: int, concurrency: int) -> dict[str, float]:
    """Send requests, ``concurrency`` at a time. Return them per second, and per CPU second of the proxy."""
    left = iter(range(requests))
    body = {"model": POOL, "messages": [{"role": "user", "content": PAYLOAD}], "max_tokens": 1}

    async def ask(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(proxy.url + CHAT, json=body) as answer:
                said = await answer.json()
                assert said["choices"][0]["message"]["content"] == PAYLOAD, said

    started, cpu_s = time.perf_counter(), process_tree.cpu_s(proxy.process.pid)
    # A proxy may have closed the connections of an earlier round.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(ask(session) for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    cpu_s = process_tree.cpu_s(proxy.process.pid) - cpu_s
    return {f"{proxy.name}, per s": requests / seconds, f"{proxy.name}, per CPU s": requests / cpu_s}


async def hold_open(services: Services, logs: Path, arguments: argparse.Namespace) -> None:
    """Measure the gateway's memory while all streams are open, and check that each answer is complete."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with simulated_worker(services, logs, arguments.streams), gateway(services, logs) as proxy:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        ) as session:
            await until_up(session, proxy)
            await stream(session, proxy, "warm", tokens=2, step_s=0, begun=asyncio.Event())
            before_mb = process_tree.rss_mb(proxy.process.pid)
            all_begun = [asyncio.Event() for _ in range(arguments.streams)]
            streaming = [
                asyncio.create_task(
                    stream(
                        session,
                        proxy,
                        str(number),
                        tokens=arguments.tokens,
                        step_s=arguments.step,
                        begun=begun,
                    )
                )
                for number, begun in enumerate(all_begun)
            ]
            opening = asyncio.gather(*(begun.wait() for begun in all_begun))
            waited: set[asyncio.Future[Any]] = {opening, *streaming}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            ended = sum(task.done() for task in streaming)
            assert not ended, f"{ended} streams ended before all were open; give more --tokens"
            held_mb = process_tree.rss_mb(proxy.process.pid)
            complete = sum(await asyncio.gather(*streaming))
    print(f"complete, in order: {complete} of {arguments.streams}")
    print(f"gateway, MB: {before_mb:.0f} before, {held_mb:.0f} with all of them open")
    print(f"per stream, KB: {(held_mb - before_mb) * 1024 / arguments.streams:.1f}")
    assert complete == arguments.streams


async def stream(
    session: aiohttp.ClientSession,
    proxy: Proxy,
    word: str,
    *,
    tokens: int,
    step_s: float,
    begun: asyncio.Event,
) -> bool:
    """Read a stream to its end, and return whether its text is what the engine generates."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": word}],
        "simulated": {"tokens": tokens, "step_delay_s": step_s},
    }
    said: list[str] = []
    last = b""
    async with session.post(proxy.url + CHAT, json={**body, "stream": True}) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        said.append(text)
                        begun.set()
            last = line.strip() or last
    return "".join(said) == expected_text(Endpoint.CHAT, body) and last == b"data: [DONE]"


async def until_up(session: aiohttp.ClientSession, proxy: Proxy, *, within_s: float = STARTING_S) -> None:
    """Wait until a proxy knows the model."""
    async with asyncio.timeout(within_s):
        while True:
            assert not proxy.process.ended, f"{proxy.name} has ended"
            try:
                async with session.get(f"{proxy.url}/v1/models") as answer:
                    if answer.status == 200 and POOL in await answer.text():
                        return
            except aiohttp.ClientError:
                pass
            # Neither proxy announces that it is ready, so polling is the only way to find out.
            await asyncio.sleep(0.1)


@contextmanager
def gateway(services: Services, logs: Path) -> Iterator[Proxy]:
    port = free_port()
    command = [sys.executable, "-P", "-m", "inferfleet.cli", "gateway", "--http-port", str(port)]
    # Like LiteLLM: no log line for each request.
    settings = {"POOL": POOL, "LOG_LEVEL": "WARNING", "MAX_OPEN_REQUESTS": "1000000"}
    with process(command, logs / "gateway.log", {**urls(services), **prefixed(settings)}) as running:
        yield Proxy(name="inferfleet", url=f"http://127.0.0.1:{port}", process=running)


@contextmanager
def litellm(upstream_url: str, logs: Path) -> Iterator[Proxy]:
    port = free_port()
    model = {"model": f"openai/{POOL}", "api_base": f"{upstream_url}/v1", "api_key": "none"}
    config = logs / "litellm.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({"model_list": [{"model_name": POOL, "litellm_params": model}]}))
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Like the gateway without keys, it does not authenticate callers.
    environment = {
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    command = [str(LITELLM), *options, "--telemetry", "False"]
    with process(command, logs / "litellm.log", environment) as running:
        yield Proxy(name="LiteLLM", url=f"http://127.0.0.1:{port}", process=running)


@contextmanager
def upstream(logs: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, str(HERE / "upstream.py"), str(port)]
    with process(command, logs / "upstream.log", {}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def no_op_worker(services: Services, logs: Path) -> Iterator[None]:
    environment = {
        "BENCH_AMQP_URL": services.amqp_url,
        "BENCH_REDIS_URL": services.redis_url,
        "BENCH_CONCURRENCY": "256",
        "BENCH_VARIANT": "",
        # No driver reads its marks, and it never completes so many jobs.
        "BENCH_MARKS": "",
        "BENCH_JOBS": "1000000000000",
    }
    command = [sys.executable, str(HERE / "inferfleet_fleet.py"), "worker"]
    with process(command, logs / "worker.log", environment):
        yield


@contextmanager
def simulated_worker(services: Services, logs: Path, streams: int) -> Iterator[None]:
    settings = {"POOL": POOL, "MAX_RUNNING": str(streams), "LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-P", "-m", "inferfleet.cli", "worker", "--engine", "simulated"]
    environment = {**urls(services), **prefixed(settings)}
    with process([*command, "--http-port", "0"], logs / "worker.log", environment):
        yield


@contextmanager
def process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Worker]:
    """Run a process until the end of the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}
    path = os.pathsep.join(filter(None, (str(HERE), inherited.get("PYTHONPATH"))))
    with log.open("wb") as output:
        running = Worker(
            subprocess.Popen(
                command,
                env=inherited | {"PYTHONPATH": path} | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ),
            log,
        )
    try:
        yield running
    except BaseException:
        print(log.name, log.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        running.stop()


def urls(services: Services) -> dict[str, str]:
    return prefixed({"AMQP_URL": services.amqp_url, "REDIS_URL": services.redis_url})


def prefixed(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"INFERFLEET_{name}": value for name, value in settings.items()}


if __name__ == "__main__":
    asyncio.run(main())
