"""The metrics for Prometheus: gauges by pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from inferfleet.exporter.snapshot import PoolNumbers, Snapshot
from inferfleet.schemas.shares import Share, fairness

GAUGES: tuple[tuple[str, str, Callable[[PoolNumbers], float | None]], ...] = (
    ("inferfleet_queue_ready", "Jobs that wait in the queue", lambda pool: pool.ready),
    ("inferfleet_queue_unacked", "Jobs that workers have taken and not finished", lambda pool: pool.unacked),
    (
        "inferfleet_queue_oldest_age_seconds",
        "How long the oldest waiting job has waited, estimated from counters",
        lambda pool: pool.oldest_age_s,
    ),
    (
        "inferfleet_queue_backlog_seconds",
        "How long waiting and taken jobs will last at present throughput",
        lambda pool: pool.backlog_s,
    ),
    ("inferfleet_dead_letters_ready", "Messages in the dead-letter queue", lambda pool: pool.dead),
    ("inferfleet_pool_paused", "1 while the pool is paused", lambda pool: pool.paused),
    (
        "inferfleet_rollout_weight",
        "Percent of the pool's jobs that go to the canary pool of its rollout",
        lambda pool: pool.rollout_weight,
    ),
    (
        "inferfleet_rollout_aborted",
        "1 if the last rollout of the pool was aborted",
        lambda pool: pool.rollout_aborted,
    ),
    (
        "inferfleet_pool_fairness",
        "Jain's index of what competing tenants were served lately, per weight: 1 if all had the same",
        lambda pool: fairness(pool.shares),
    ),
)

MAX_TENANTS: Final = 100
"""How many tenants of a pool have series of their own: those that were served most. The others share one."""

OTHER: Final = "other"


class FleetCollector(Collector):
    """Collects the latest snapshot. If that is older than ``stale_after_s``, reports no service as up."""

    def __init__(self, latest: Callable[[], Snapshot | None], *, stale_after_s: float) -> None:
        self._latest = latest
        self._stale_after_s = stale_after_s
        self._version = version("inferfleet")

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family; those without a known value are empty."""
        snapshot = self._latest()
        if snapshot is None or time.monotonic() - snapshot.at > self._stale_after_s:
            snapshot = Snapshot(at=0.0, rabbitmq=False, redis=False)
        up = GaugeMetricFamily(
            "inferfleet_exporter_up", "1 if the service could be read last time", labels=("service",)
        )
        up.add_metric(("rabbitmq",), snapshot.rabbitmq)
        up.add_metric(("redis",), snapshot.redis)
        yield up
        for name, what, value_of in GAUGES:
            family = GaugeMetricFamily(name, what, labels=("pool",))
            for pool, numbers in snapshot.pools.items():
                if (value := value_of(numbers)) is not None:
                    family.add_metric((pool,), value)
            yield family
        workers = GaugeMetricFamily(
            "inferfleet_workers", "Workers on the health map", labels=("pool", "phase")
        )
        for pool, numbers in snapshot.pools.items():
            for phase, number in (numbers.workers or {}).items():
                workers.add_metric((pool, phase), number)
        yield workers
        unfinished = GaugeMetricFamily(
            "inferfleet_unfinished_jobs", "Jobs that have not ended", labels=("pool", "priority")
        )
        for pool, numbers in snapshot.pools.items():
            for priority, number in (numbers.unfinished or {}).items():
                unfinished.add_metric((pool, str(priority)), number)
        yield unfinished
        attained = GaugeMetricFamily(
            "inferfleet_pool_attained_tokens",
            "What a tenant was served lately, decaying by half in 30 s; a token of an answer counts twice",
            labels=("pool", "tenant"),
        )
        for pool, numbers in snapshot.pools.items():
            for tenant, tokens in _by_tenant(numbers.shares).items():
                attained.add_metric((pool, tenant), tokens)
        yield attained
        yield InfoMetricFamily("inferfleet_exporter", "The exporter's build", {"version": self._version})


def _by_tenant(shares: Sequence[Share]) -> dict[str, float]:
    most_served = sorted(shares, key=lambda share: share.tokens, reverse=True)
    tokens: dict[str, float] = {}
    for position, share in enumerate(most_served):
        tenant = share.tenant if position < MAX_TENANTS else OTHER
        tokens[tenant] = tokens.get(tenant, 0.0) + share.tokens
    return tokens


def exposition(collector: FleetCollector) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
