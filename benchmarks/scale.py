"""How ours behaves as it grows: jobs waiting and in flight, an urgent job's wait, processes, sessions, sizes.

python benchmarks/scale.py [--waiting 1000 10000 100000 1000000] [--lazy-waiting …] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import process_tree
import redis
from children import Client, Worker, drain_marks, end_in_order, listening
from known import OURS
from machine import benchmark_services, description
from rounds import Bench, Sizes
from yarl import URL

Row = dict[str, float]

SAMPLE = 5000
"""Jobs whose cost is measured, however many wait behind them."""

SAMPLES = 5
"""So often, the median of which counts, where others wait behind them."""

BATCH_WORK_S = 2.0
"""The median duration of a batch job."""

LONG_WORK_S = 30.0
"""The median duration of a job that only has to be in flight."""

URGENT = 24
STEP = 100
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def waiting(bench: Bench, count: int) -> Row:
    """The cost of a job with so many waiting behind it, the worker's memory, and an urgent job's wait."""
    client = _client(bench)
    try:
        client.order("backlog", count, BATCH_WORK_S)
        _let_redis_rewrite(bench)
        costs = [_cost_before_the_waiting(bench, client) for _ in range(SAMPLES)]
        worker = _worker(bench, 1)
        try:
            # Until the batch jobs no longer begin and end together.
            time.sleep(2 * BATCH_WORK_S)
            urgent = client.order("urgent", URGENT)
        finally:
            worker.stop()
    finally:
        client.stop()
    return {
        "waiting": count,
        **{name: statistics.median(cost[name] for cost in costs) for name in costs[0]},
        "urgent start, p50 ms": urgent["p50_ms"],
        "urgent start, p99 ms": urgent["p99_ms"],
    }


def lazy_waiting(bench: Bench, count: int) -> Row:
    """The same in a queue that RabbitMQ 3 keeps on disk, as docs/deploy.md advises for long ones."""
    policy = {"pattern": "^inferfleet[.]jobs[.]", "apply-to": "queues", "definition": {"queue-mode": "lazy"}}
    assert bench.services.management_url is not None
    url = URL(f"{bench.services.management_url}/api/policies/%2F/lazy", encoded=True)
    asyncio.run(_put(url, policy))
    return waiting(bench, count)


def workers(bench: Bench, count: int) -> Row:
    """The drain by so many worker processes together, once all of them are at it."""
    jobs = bench.sizes.drain * 2
    client = _client(bench)
    try:
        client.order("bulk", jobs)
    finally:
        client.stop()
    running = [_worker(bench, jobs * 10, BENCH_STEP=str(STEP)) for _ in range(count)]
    try:
        counted, begun, cpu = 0, 0.0, 0.0
        while counted < jobs * 0.9:
            mark = running[0].wait_for_mark(bench.marks, "step")
            counted += STEP
            if counted == int(jobs * 0.3):
                begun, cpu = mark.at, sum(process_tree.cpu_s(worker.pid) for worker in running)
        measured = counted - int(jobs * 0.3)
        used = sum(process_tree.cpu_s(worker.pid) for worker in running) - cpu
        return {
            "workers": count,
            "jobs/s": measured / (mark.at - begun),
            "worker CPU µs per job": used / measured * 1e6,
        }
    finally:
        for worker in running:
            worker.stop()


def in_flight(bench: Bench, count: int) -> Row:
    """The worker's memory while it runs so many jobs at once."""
    client = _client(bench)
    try:
        client.order("backlog", count, LONG_WORK_S)
    finally:
        client.stop()
    worker = _worker(bench, count, BENCH_CONCURRENCY=str(count))
    try:
        # The shortest jobs take half of LONG_WORK_S. By then all have long been taken.
        worker.wait_for_mark(bench.marks, "first")
        return {"in flight": count, "worker peak RSS, MB": process_tree.peak_rss_mb(worker.pid)[0]}
    finally:
        worker.stop()


def sessions(bench: Bench, count: int) -> Row:
    """The cost of a turn when so many sessions exist."""
    client = _client(bench)
    worker = _worker(bench, 10 * count)
    try:
        client.order("turns", count)
        cpu = process_tree.cpu_s(worker.pid)
        taken = client.order("turns", min(SAMPLE, count))
        used = process_tree.cpu_s(worker.pid) - cpu
        return {
            "sessions": count,
            "turns/s": taken["jobs"] / taken["seconds"],
            "worker CPU µs per turn": used / taken["jobs"] * 1e6,
            "worker peak RSS, MB": process_tree.peak_rss_mb(worker.pid)[0],
        }
    finally:
        client.stop()
        worker.stop()


def size(bench: Bench, payload: int) -> Row:
    """The cost of messages of so many bytes, with answers as long."""
    jobs = max(60, min(SAMPLE, 40_000_000 // payload))
    client = _client(bench, BENCH_PAYLOAD_BYTES=str(payload))
    try:
        submitted = client.order("bulk", jobs)
    finally:
        client.stop()
    worker = _worker(bench, jobs, BENCH_PAYLOAD_BYTES=str(payload))
    try:
        return {"bytes": payload, "submitted jobs/s": jobs / submitted["seconds"], **_cost(bench, worker)}
    finally:
        worker.stop()


async def _put(url: URL, document: object) -> None:
    async with aiohttp.request("PUT", url, json=document, raise_for_status=True):
        pass


def _cost_before_the_waiting(bench: Bench, client: Client) -> Row:
    client.order("bulk", SAMPLE)
    worker = _worker(bench, SAMPLE)
    try:
        return _cost(bench, worker)
    finally:
        worker.stop()


def _let_redis_rewrite(bench: Bench) -> None:
    """Wait while Redis shortens its append-only file, which is a cost of the jobs that were submitted."""
    with redis.Redis.from_url(bench.services.redis_url) as client:
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.1)


def _cost(bench: Bench, worker: Worker) -> Row:
    first = worker.wait_for_mark(bench.marks, "first")
    last = worker.wait_for_mark(bench.marks, "last")
    jobs = last.jobs - first.jobs
    return {
        "jobs/s": jobs / (last.at - first.at),
        "worker CPU µs per job": (last.cpu_s - first.cpu_s) / jobs * 1e6,
        "worker peak RSS, MB": process_tree.peak_rss_mb(worker.pid)[0],
    }


def _client(bench: Bench, **environment: str) -> Client:
    redis.Redis.from_url(bench.services.redis_url).flushall()
    return OURS.start_client(bench.environment(1) | environment, log=bench.folder / "client.log")


def _worker(bench: Bench, jobs: int, **environment: str) -> Worker:
    drain_marks(bench.marks)
    log = bench.folder / "worker.log"
    return OURS.start_worker(bench.environment(jobs) | environment, busy=False, log=log)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/scale.py", description=__doc__)
    parser.add_argument("--waiting", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--lazy-waiting", type=int, nargs="*", default=[], help="in queues kept on disk")
    parser.add_argument("--in-flight", type=int, nargs="*", default=[256, 1_000, 4_000])
    parser.add_argument("--sessions", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--output", type=Path, help="a folder for JSON and plots; without it, only print")
    arguments = parser.parse_args()
    end_in_order()
    cases = [
        *((waiting, count) for count in arguments.waiting),
        *((lazy_waiting, count) for count in arguments.lazy_waiting),
        *((in_flight, count) for count in arguments.in_flight),
        *((sessions, count) for count in arguments.sessions),
        *((workers, count) for count in arguments.workers),
        *((size, count) for count in arguments.sizes),
    ]
    rows: dict[str, list[Row]] = {}
    for case, count in cases:
        # Services of its own for each: what the last one left must not count.
        with (
            benchmark_services(management=case is lazy_waiting) as services,
            tempfile.TemporaryDirectory(prefix="inferfleet-scale-") as folder,
            listening(Path(folder) / "marks") as marks,
        ):
            bench = Bench(services=services, folder=Path(folder), marks=marks, sizes=Sizes())
            row = case(bench, count)
            rows.setdefault(case.__name__, []).append(row)
            print("  ".join(f"{name}: {value:,.4g}" for name, value in row.items()), file=sys.stderr)
            machine = description(services)
    if arguments.output is not None:
        write(arguments.output, {"machine": machine, "rows": rows})


def write(folder: Path, document: dict[str, object]) -> None:
    """Write the figures and their plots."""
    from plots import lines

    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    (folder / "scale.json").write_text(json.dumps({"at": at, **document}, indent=1) + "\n")
    rows: dict[str, list[Row]] = document["rows"]  # type: ignore[assignment]
    for case, x, y in (
        ("waiting", "waiting", "worker CPU µs per job"),
        ("waiting", "waiting", "worker peak RSS, MB"),
        ("waiting", "waiting", "urgent start, p50 ms"),
        ("in_flight", "in flight", "worker peak RSS, MB"),
        ("sessions", "sessions", "worker CPU µs per turn"),
        ("workers", "workers", "jobs/s"),
        ("size", "bytes", "jobs/s"),
    ):
        if points := {row[x]: row[y] for row in rows.get(case, [])}:
            name = f"{case}-{y.split(',')[0].translate(str.maketrans(' /µ', '--u')).lower()}.svg"
            lines(folder / name, title=y, x=x, y=y, series={y: points}, log_x=case != "workers")


if __name__ == "__main__":
    main()
