"""Says which gates of a pool are closed: why its jobs do not start, or are not accepted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

from inferfleet.schemas.fleet_snapshot import Gate, GateReason
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.pool import PoolStatus


def closed_gates(pool: PoolStatus, *, queue_known: bool, waiting_turns: int) -> Generator[Gate]:
    """Yield the closed gates of a pool, the widest first.

    ``queue_known`` says whether RabbitMQ has answered. Only then ``ready=None`` means that there is no queue.
    """
    if pool.paused_at is not None:
        yield Gate(reason=GateReason.PAUSED, detail=f"paused since {pool.paused_at:%Y-%m-%d %H:%M:%S} UTC")
    if pool.unfinished and not any(worker.phase is WorkerPhase.READY for worker in pool.workers):
        yield Gate(reason=GateReason.NO_WORKER, detail=f"no worker is ready{_phases(pool.workers)}")
    if pool.ready is None and queue_known:
        yield Gate(reason=GateReason.NO_QUEUE, detail="no queue: jobs are refused until a worker declares it")
    if pool.ready is not None and pool.queue_max_length is not None and pool.ready >= pool.queue_max_length:
        full = f"the queue is full with {count_of(pool.ready, 'job')}, and refuses more"
        yield Gate(reason=GateReason.FULL, detail=full)
    if waiting_turns:
        yield Gate(
            reason=GateReason.TURN,
            detail=f"turns that wait for earlier turns of their sessions: {waiting_turns:,}",
        )
    if held := sum(worker.held for worker in pool.workers):
        yield Gate(reason=GateReason.SLOT, detail=f"jobs that wait in workers for a free slot: {held:,}")


def _phases(workers: tuple[Heartbeat, ...]) -> str:
    """Return in parentheses how many workers are in which phase; nothing if there are none."""
    counted = sorted(Counter(worker.phase for worker in workers).items())
    return f" ({', '.join(f'{number} {phase}' for phase, number in counted)})" if counted else ""
