"""The whole fleet at one moment: pools with rates, backlogs and closed gates, and recently ended jobs."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from inferfleet.schemas.heartbeat import EndedJob
from inferfleet.schemas.job import PoolName
from inferfleet.schemas.pool import PoolStatus
from inferfleet.schemas.rollout import RolloutPhase
from inferfleet.schemas.wire_model import WireModel


class GateReason(StrEnum):
    """Why jobs of a pool do not start, or are not accepted."""

    PAUSED = "paused"
    """The pool is paused."""
    NO_WORKER = "no_worker"
    """There are jobs, and no worker is ready."""
    NO_QUEUE = "no_queue"
    """The pool has no queue, so it accepts no jobs."""
    FULL = "full"
    """The queue holds as many jobs as it may, so it accepts no more."""
    TURN = "turn"
    """Turns wait for earlier turns of their sessions."""
    SLOT = "slot"
    """Workers hold jobs that wait for a free slot."""


class Gate(WireModel):
    """A closed gate, as a word and as a sentence for a person."""

    reason: GateReason
    detail: str


class PoolView(PoolStatus):
    """A pool with its rates and its closed gates. ``ready`` is ``None`` also while RabbitMQ does not answer.

    ``finished_per_s`` and ``tokens_per_s`` are the sums of its workers. ``backlog_s`` is how long the
    unfinished jobs last at that rate of jobs, ``None`` while no job ends. ``queue_wait_s`` is the median wait
    of the jobs in ``FleetSnapshot.ended`` that ended in the last minute.
    """

    finished_per_s: float = 0.0
    tokens_per_s: float = 0.0
    backlog_s: float | None = None
    queue_wait_s: float | None = None
    gates: tuple[Gate, ...] = ()


class RolloutView(WireModel):
    """A rollout, and what both its pools have done since its step began.

    ``step`` counts from 1. An error rate is a share from 0 to 1, ``None`` while no attempt has ended.
    ``ttft_ratio`` is the median time to first token of the canary pool, as a multiple of the pool's own.
    """

    pool: PoolName
    to: PoolName
    phase: RolloutPhase
    step: int
    steps: int
    weight: float
    since: AwareDatetime
    reason: str | None = None
    stable_error_rate: float | None = None
    canary_error_rate: float | None = None
    ttft_ratio: float | None = None


class AgentQueueView(WireModel):
    """The unfinished runs of agents in a queue: those that wait for a runner, have one, or wait.

    If there are many, they are ``sampled``: all but ``unfinished`` is an estimate from some of them, and
    ``oldest_s`` the age of the oldest one of these.
    """

    queue: PoolName
    unfinished: int
    queued: int = 0
    running: int = 0
    waiting_for_people: int = 0
    waiting_for_children: int = 0
    oldest_s: float | None = None
    sampled: bool = False


class FleetSnapshot(WireModel):
    """The fleet at one moment. ``unreachable`` has the error of each service that does not answer.

    While Redis does not answer, all but ``unreachable`` is that of ``at``, when it last did. ``ended`` has
    the jobs that heartbeats have named, the newest first: not all jobs of a busy worker. ``rollouts`` has
    those that are not finished, ``agents`` the queues with unfinished runs.
    """

    at: AwareDatetime
    unreachable: dict[str, str] = Field(default_factory=dict[str, str])
    pools: tuple[PoolView, ...] = ()
    rollouts: tuple[RolloutView, ...] = ()
    agents: tuple[AgentQueueView, ...] = ()
    ended: tuple[EndedJob, ...] = ()
