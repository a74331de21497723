"""A snapshot: what the exporter knows at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.shares import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolNumbers:
    """The numbers of one pool. ``None`` is unknown, and not shown."""

    ready: int | None = None
    unacked: int | None = None
    oldest_age_s: float | None = None
    backlog_s: float | None = None
    dead: int | None = None
    workers: Mapping[WorkerPhase, int] | None = None
    unfinished: Mapping[int, int] | None = None
    """Jobs that have not ended, by priority."""
    paused: bool | None = None
    rollout_weight: float | None = None
    """Of a pool that has ever had a rollout."""
    rollout_aborted: bool | None = None
    shares: Sequence[Share] = ()
    """What tenants have been served lately, the best served first; none without fair shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The numbers of all pools, and which services answered. ``at`` is a monotonic time in seconds."""

    at: float
    rabbitmq: bool
    redis: bool
    pools: Mapping[str, PoolNumbers] = field(default_factory=dict[str, PoolNumbers])
