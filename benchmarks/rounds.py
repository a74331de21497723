"""One round of one contender, and the interleaving of rounds.

Everything about a contender is measured again in every round, and the contenders take turns, so that a slow
minute of the machine does not fall on one of them alone.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import process_tree
import redis
from children import Mark, Worker, drain_marks, listening
from contender import Contender

from inferfleet.local.services import Services

Figures = dict[str, float]
"""What one round of one contender gave: figure to value."""

WARM_UP_JOBS = 30
"""Jobs that are not measured: a process builds much when it submits its first."""

SETTLE_S = 0.3
"""A pause after a drain, for the acks of its last jobs."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many jobs of each kind."""

    drain: int = 6000
    submit_each: int = 400
    alone: int = 200
    together: int = 3200
    streamed: int = 10
    busy: int = 3000
    busy_work_s: float = 0.05

    def scaled(self, factor: float) -> Sizes:
        """The same for a shorter or longer run; still enough jobs for each of 64 callers."""
        return Sizes(
            drain=max(300, int(self.drain * factor)),
            submit_each=max(50, int(self.submit_each * factor)),
            alone=max(50, int(self.alone * factor)),
            together=max(256, int(self.together * factor)),
            streamed=max(3, int(self.streamed * factor)),
            busy=max(600, int(self.busy * factor)),
        )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The services that all contenders share, and a place for their logs."""

    services: Services
    folder: Path
    marks: socket.socket
    sizes: Sizes

    def round(self, contender: Contender) -> Figures:
        """Measure every case of one contender once."""
        redis.Redis.from_url(self.services.redis_url).flushall()
        log = self.folder / f"{contender.name}.log"
        figures: Figures = {}
        client = contender.start_client(self.environment(1), log=log)
        try:
            if "submit" in contender.cases:
                client.order("each", WARM_UP_JOBS)
                each = client.order("each", self.sizes.submit_each)
                figures["submit one by one, jobs/s"] = each["jobs"] / each["seconds"]
                figures["submit one by one, client CPU s per 1,000"] = each["cpu_s"] / each["jobs"] * 1000
            filled = WARM_UP_JOBS + self.sizes.submit_each if "submit" in contender.cases else 0
            bulk = client.order("bulk", self.sizes.drain)
            figures["submit in bulk, jobs/s"] = bulk["jobs"] / bulk["seconds"]
            figures["submit in bulk, client CPU s per 1,000"] = bulk["cpu_s"] / bulk["jobs"] * 1000
            worker = self._start(contender, self.sizes.drain + filled, busy=False)
            try:
                figures |= self._drained(worker, "drain")
                if "round trip" in contender.cases:
                    client.order("1", WARM_UP_JOBS)
                    alone = client.order("1", self.sizes.alone)
                    figures["round trip, 1 outstanding, p50 ms"] = alone["p50_ms"]
                    figures["round trip, 1 outstanding, p99 ms"] = alone["p99_ms"]
                    together = client.order("64", self.sizes.together)
                    figures["round trip, 64 outstanding, p50 ms"] = together["p50_ms"]
                    figures["round trip, 64 outstanding, p99 ms"] = together["p99_ms"]
                if "stream" in contender.cases:
                    streamed = client.order("stream", self.sizes.streamed)
                    figures["first streamed token, p50 ms"] = streamed["p50_ms"]
                peaks = process_tree.peak_rss_mb(worker.pid)
                figures["worker peak RSS, MB"] = sum(peaks)
                figures["worker processes"] = len(peaks)
            finally:
                worker.stop()
            if "50 ms" in contender.cases:
                client.order("bulk", self.sizes.busy, self.sizes.busy_work_s)
                worker = self._start(contender, self.sizes.busy, busy=True)
                try:
                    figures |= self._drained(worker, "50 ms job")
                finally:
                    worker.stop()
            figures["client peak RSS, MB"] = bulk["peak_rss_mb"]
        finally:
            client.stop()
        return figures

    def _start(self, contender: Contender, jobs: int, *, busy: bool) -> Worker:
        drain_marks(self.marks)
        log = self.folder / f"{contender.name}.log"
        return contender.start_worker(self.environment(jobs), busy=busy, log=log)

    def _drained(self, worker: Worker, case: str) -> Figures:
        first = worker.wait_for_mark(self.marks, "first")
        last = worker.wait_for_mark(self.marks, "last")
        time.sleep(SETTLE_S)
        return {
            f"{case}, jobs/s": (last.jobs - first.jobs) / (last.at - first.at),
            f"{case}, worker CPU s per 1,000": _cpu_s_per_1000(first, last),
        }

    def environment(self, jobs: int) -> dict[str, str]:
        return {
            "BENCH_AMQP_URL": self.services.amqp_url,
            "BENCH_REDIS_URL": self.services.redis_url,
            "BENCH_MARKS": str(self.folder / "marks"),
            "BENCH_JOBS": str(jobs),
        }


def interleaved(
    contenders: Sequence[Contender], services: Services, *, rounds: int, sizes: Sizes
) -> dict[str, list[Figures]]:
    """Measure all contenders, one after the other, ``rounds`` times."""
    figures: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
    with (
        tempfile.TemporaryDirectory(prefix="inferfleet-bench-") as folder,
        listening(Path(folder) / "marks") as marks,
    ):
        bench = Bench(services=services, folder=Path(folder), marks=marks, sizes=sizes)
        for number in range(1, rounds + 1):
            for contender in contenders:
                started = time.monotonic()
                figures[contender.name].append(bench.round(contender))
                took = time.monotonic() - started
                print(f"round {number}/{rounds}  {contender.name:<20} {took:5.1f} s", file=sys.stderr)
    return figures


def _cpu_s_per_1000(first: Mark, last: Mark) -> float:
    return (last.cpu_s - first.cpu_s) / (last.jobs - first.jobs) * 1000
