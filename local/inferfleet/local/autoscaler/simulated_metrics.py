"""The metrics that triggers read in a simulation: RabbitMQ's counts, and the exporter's gauges by name."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from inferfleet.local.autoscaler.decision import Reading, Readings
from inferfleet.local.autoscaler.triggers import (
    Mode,
    PrometheusTrigger,
    Protocol,
    RabbitMQTrigger,
    Trigger,
    consumption_time_s,
)
from inferfleet.schemas.errors import ConfigurationError

WINDOW_S = 60.0
"""The period over which the exporter measures the throughput."""

_FACTOR = re.compile(r"(?:max|min|sum)\(\s*(?P<name>[a-z_]+)\s*(?:\{(?P<labels>[^}]*)\})?\s*\)")


class SimulatedMetrics:
    """The numbers as of the last ``observe``. The caller counts ``published``."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        self.published = 0
        self._ready = self._unacked = 0
        self._gauges: Mapping[str, float] = {}
        self._finished: deque[tuple[float, int]] = deque()
        self._rate = 0.0
        self._flow = deque([(0.0, 0, 0)], maxlen=2)
        self._readers = [self._reader(trigger) for trigger in triggers]

    def observe(
        self,
        *,
        now: float,
        ready: int,
        unacked: int,
        heaviness: float,
        oldest_age_s: float,
        finished: int,
        ready_workers: int,
    ) -> None:
        """Record the current state of the fleet."""
        self._ready, self._unacked = ready, unacked
        # Every published job is either ready or has been delivered.
        self._flow.append((now, self.published, self.published - ready))
        self._finished.append((now, finished))
        while now - self._finished[0][0] > WINDOW_S:
            self._finished.popleft()
        since, before = self._finished[0]
        if finished > before:
            self._rate = (finished - before) / (now - since)
        work = ready + unacked
        backlog_s = 0.0 if not work else work * heaviness / self._rate if self._rate else math.nan
        self._gauges = {
            "inferfleet_queue_ready": ready,
            "inferfleet_queue_unacked": unacked,
            "inferfleet_queue_oldest_age_seconds": oldest_age_s,
            "inferfleet_queue_backlog_seconds": backlog_s,
            "inferfleet_workers": ready_workers,
        }

    def read(self, *, ready_now: int) -> Readings:
        """Read all triggers. AMQP has the current ready messages; all other numbers are as last observed."""
        return [read(ready_now) for read in self._readers]

    def _reader(self, trigger: Trigger) -> Callable[[int], Reading]:
        match trigger:
            case RabbitMQTrigger(protocol=Protocol.AMQP):
                return lambda ready_now: Reading(ready_now)
            case RabbitMQTrigger(mode=Mode.CONSUMPTION_TIME):
                return lambda _: self._consumption_time(trigger)
            case RabbitMQTrigger():
                return lambda _: Reading(self._counted(trigger))
            case PrometheusTrigger():
                factors = _factors(trigger)
                return lambda _: self._query(trigger, factors)

    def _counted(self, trigger: RabbitMQTrigger) -> int:
        return self._ready if trigger.exclude_unacknowledged else self._ready + self._unacked

    def _consumption_time(self, trigger: RabbitMQTrigger) -> Reading:
        (since, published, delivered), (now, published_now, delivered_now) = self._flow[0], self._flow[-1]
        period_s = now - since or math.inf
        return Reading(
            consumption_time_s(
                self._counted(trigger),
                published_per_s=(published_now - published) / period_s,
                # Jobs that a drained worker gives back are ready again.
                delivered_per_s=max(0, delivered_now - delivered) / period_s,
                activation=trigger.activation,
            )
        )

    def _query(self, trigger: PrometheusTrigger, factors: Sequence[str]) -> Reading:
        value = math.prod(self._gauges.get(name, math.nan) for name in factors)
        if math.isfinite(value):
            return Reading(value)
        return Reading(0.0) if trigger.ignore_null_values else Reading(None, "no value yet")


def _factors(trigger: PrometheusTrigger) -> list[str]:
    """Parse a query that multiplies gauges of the exporter."""
    names: list[str] = []
    for factor in trigger.query.split("*"):
        match = _FACTOR.fullmatch(factor.strip())
        if match is None or match["name"] not in _GAUGES or not _one_kind_of_worker(match):
            raise ConfigurationError(
                f"trigger {trigger.name!r} cannot be simulated: its query may only multiply "
                f"max(GAUGE{{…}}) of {', '.join(sorted(_GAUGES))}"
            )
        names.append(match["name"])
    return names


def _one_kind_of_worker(match: re.Match[str]) -> bool:
    return match["name"] != "inferfleet_workers" or 'phase="ready"' in (match["labels"] or "")


_GAUGES = frozenset(
    {
        "inferfleet_queue_ready",
        "inferfleet_queue_unacked",
        "inferfleet_queue_oldest_age_seconds",
        "inferfleet_queue_backlog_seconds",
        "inferfleet_workers",
    }
)
