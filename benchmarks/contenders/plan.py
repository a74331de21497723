"""What a contender's client does, step by step, each step measured alike for all.

A contender gives the verbs (``submit``, ``submit_bulk``, ``result``), this module the order and the clock.
Standard library only: this also runs in the peers' environment.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

PAYLOAD = "x" * int(os.environ.get("BENCH_PAYLOAD_BYTES", "1000"))
"""What goes in and what comes out: 1 KB with its envelope, if nothing else is said."""

RESULT_TIMEOUT_S = 60.0


def prompt(number: int, tokens: int) -> list[int]:
    """The token ids of a prompt that begins like no other, so that no prefix cache helps."""
    digits = (number // 40_000, number // 200, number)
    return [digit % 200 + 10 for digit in (*digits, *range(number, number + tokens - len(digits)))]


class AsyncClient(Protocol):
    """A client of a contender whose library is asynchronous."""

    async def submit(self, payload: str, work_s: float) -> Any:
        """Submit one job and return once the broker has confirmed it."""
        ...

    async def submit_bulk(self, payload: str, work_s: float, count: int) -> None:
        """Submit many jobs in the fastest way that the library offers, all of them confirmed."""
        ...

    async def round_trip(self, payload: str, work_s: float) -> None:
        """Submit a job and wait for its answer."""
        ...


class BlockingClient(Protocol):
    """A client of a contender whose library blocks."""

    def submit(self, payload: str, work_s: float) -> Any: ...

    def submit_bulk(self, payload: str, work_s: float, count: int) -> None: ...

    def result(self, handle: Any) -> str: ...


def steps() -> Iterator[tuple[str, int, float]]:
    """Read the driver's orders, one a line: a verb, a number of jobs and seconds of work for each."""
    for line in sys.stdin:
        verb, count, work_s = line.split()
        yield verb, int(count), float(work_s)


def report(**values: Any) -> None:
    """Answer an order."""
    print(json.dumps(values), flush=True)


def run_blocking(client: BlockingClient) -> None:
    """Follow the driver's orders with a blocking client."""
    report(ready=True)
    for verb, count, work_s in steps():
        with measured() as figures:
            match verb:
                case "each":
                    for _ in range(count):
                        client.submit(PAYLOAD, work_s)
                case "bulk":
                    client.submit_bulk(PAYLOAD, work_s, count)
                case _:
                    figures |= _latencies(_window(client, count, work_s, outstanding=int(verb)))
        report(**figures, jobs=count)


async def run_async(client: AsyncClient) -> None:
    """Follow the driver's orders with an asynchronous client."""
    report(ready=True)
    orders = steps()
    # Read in a thread: the client has to keep its connections alive between two orders.
    while (order := await asyncio.to_thread(next, orders, None)) is not None:
        verb, count, work_s = order
        with measured() as figures:
            match verb:
                case "each":
                    for _ in range(count):
                        await client.submit(PAYLOAD, work_s)
                case "bulk":
                    await client.submit_bulk(PAYLOAD, work_s, count)
                case _ if verb.isdigit():
                    figures |= _latencies(await _outstanding(client, count, work_s, outstanding=int(verb)))
                case _:
                    # What only one contender can do: its client has a method of that name.
                    figures |= _latencies(await getattr(client, verb)(PAYLOAD, work_s, count))
        report(**figures, jobs=count)


async def gathered(submit: Callable[[], Awaitable[Any]], count: int, *, window: int = 500) -> None:
    """Submit many at once, a window at a time: what one does with a library that has no bulk call."""
    for first in range(0, count, window):
        await asyncio.gather(*(submit() for _ in range(min(window, count - first))))


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Time the block: ``seconds`` and, of this process, ``cpu_s`` and ``peak_rss_mb``."""
    figures: dict[str, Any] = {}
    started, cpu = time.perf_counter(), time.process_time()
    yield figures
    figures["seconds"] = time.perf_counter() - started
    figures["cpu_s"] = time.process_time() - cpu
    # Not getrusage, which knows the driver's peak from before the fork.
    status = Path("/proc/self/status").read_text()
    figures["peak_rss_mb"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _window(client: BlockingClient, count: int, work_s: float, *, outstanding: int) -> list[float]:
    """Keep so many jobs outstanding, and collect their answers in the order of submission."""
    latencies: list[float] = []
    waiting: deque[tuple[float, Any]] = deque()

    def collect() -> None:
        started, handle = waiting.popleft()
        client.result(handle)
        latencies.append(time.perf_counter() - started)

    for _ in range(count):
        if len(waiting) == outstanding:
            collect()
        started = time.perf_counter()
        waiting.append((started, client.submit(PAYLOAD, work_s)))
    while waiting:
        collect()
    return latencies


async def _outstanding(client: AsyncClient, count: int, work_s: float, *, outstanding: int) -> list[float]:
    """Let so many callers each submit and wait, again and again."""
    latencies: list[float] = []

    async def caller() -> None:
        for _ in range(count // outstanding):
            started = time.perf_counter()
            await client.round_trip(PAYLOAD, work_s)
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(outstanding)))
    return latencies


def _latencies(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        "p50_ms": statistics.median(seconds) * 1000,
        "p99_ms": statistics.quantiles(seconds, n=100)[98] * 1000,
    }
