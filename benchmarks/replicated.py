"""What replicas cost: bulk submits and drains on several nodes beside those on one, in turns.

    .venv-bench/bin/python benchmarks/replicated.py [--rounds 5] [--jobs 4000]

All nodes run on this machine, so this shows the work that replicas are, without a network and more machines.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from children import drain_marks, end_in_order, listening
from known import OURS
from statistic import spread

from inferfleet.local.services.rabbitmq_cluster import RabbitMQCluster
from inferfleet.local.services.rabbitmq_process import port_mapper_binary, server_binary
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_cluster import RedisCluster
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.local.services.redis_sentinels import RedisSentinels
from inferfleet.schemas.settings import QueueType


@dataclass(frozen=True)
class Topology:
    """Where the jobs wait, and where their records are."""

    name: str
    amqp_url: str
    redis_url: str
    queue_type: QueueType = QueueType.CLASSIC
    figures: dict[str, list[float]] = field(default_factory=dict)

    def environment(self, folder: Path, jobs: int) -> Mapping[str, str]:
        """What the client and the worker read."""
        return {
            "BENCH_AMQP_URL": self.amqp_url,
            "BENCH_REDIS_URL": self.redis_url,
            "BENCH_MARKS": str(folder / "marks"),
            "BENCH_JOBS": str(jobs),
            "INFERFLEET_QUEUE_TYPE": self.queue_type.value,
        }


@contextmanager
def topologies(folder: Path) -> Iterator[list[Topology]]:
    """Run all nodes of all topologies while the block runs."""
    server, port_mapper, redis_server = server_binary(), port_mapper_binary(), redis_binary()
    if server is None or port_mapper is None or redis_server is None:
        sys.exit("this needs rabbitmq-server and redis-server on this machine")
    with ExitStack() as stack:
        reaper = stack.enter_context(Reaper())

        def brokers(name: str, size: int) -> str:
            cluster = RabbitMQCluster(
                server=server,
                port_mapper=port_mapper,
                folder=folder / name,
                reaper=reaper,
                size=size,
            )
            stack.callback(cluster.kill)
            cluster.start()
            return cluster.url

        store = RedisProcess(server=redis_server, folder=folder / "redis", reaper=reaper)
        sentinels = RedisSentinels(server=redis_server, folder=folder / "sentinels", reaper=reaper)
        cluster = RedisCluster(server=redis_server, folder=folder / "cluster", reaper=reaper)
        for service in (store, sentinels, cluster):
            stack.callback(service.close)
            service.start()
        one = brokers("classic", 1)
        yield [
            Topology("one RabbitMQ, one Redis", one, store.url),
            Topology("one RabbitMQ with a quorum queue", brokers("quorum", 1), store.url, QueueType.QUORUM),
            Topology("three RabbitMQ with a quorum queue", brokers("three", 3), store.url, QueueType.QUORUM),
            Topology("Redis with a replica and Sentinels", one, sentinels.url),
            Topology("Redis Cluster of three masters", one, cluster.url),
        ]


def measure(topology: Topology, folder: Path, jobs: int) -> dict[str, float]:
    """Submit so many jobs and drain them."""
    log = folder / "processes.log"
    with listening(folder / "marks") as marks:
        client = OURS.start_client(topology.environment(folder, 1), log=log)
        try:
            bulk = client.order("bulk", jobs)
            drain_marks(marks)
            worker = OURS.start_worker(topology.environment(folder, jobs), busy=False, log=log)
            try:
                first, last = (worker.wait_for_mark(marks, name) for name in ("first", "last"))
            finally:
                worker.stop()
        finally:
            client.stop()
    return {
        "submit, jobs/s": bulk["jobs"] / bulk["seconds"],
        "drain, jobs/s": (last.jobs - first.jobs) / (last.at - first.at),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=4000)
    arguments = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="inferfleet-replicated-") as name:
        folder = Path(name)
        with topologies(folder) as all_of_them:
            for number in range(arguments.rounds):
                for topology in all_of_them:
                    for figure, value in measure(topology, folder, arguments.jobs).items():
                        topology.figures.setdefault(figure, []).append(value)
                print(f"round {number + 1}/{arguments.rounds}", file=sys.stderr)
            alone = all_of_them[0].figures
            for topology in all_of_them:
                for figure, values in topology.figures.items():
                    ratios = [value / base for value, base in zip(values, alone[figure], strict=True)]
                    print(
                        f"{topology.name:36} {figure:16} {statistics.median(values):>8,.0f}"
                        f" ± {spread(values):.0%}  {statistics.median(ratios):.2f} of one of each"
                    )


if __name__ == "__main__":
    main()
