"""Prints workers and pools for a person: a line each and nothing cut off, so that ids can be copied."""

from __future__ import annotations

from collections.abc import Iterable

from inferfleet.cli.terminal import line, out, shown_id
from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.model_swap import SwapState
from inferfleet.schemas.plural import count_of
from inferfleet.schemas.pool import PoolStatus


def print_workers(workers: Iterable[Heartbeat]) -> None:
    """Print a line for each worker."""
    for worker in workers:
        identity = f" ({worker.model_identity})" if worker.model_identity else ""
        adapters = f" and {count_of(len(worker.adapters), 'adapter')}" if worker.adapters else ""
        out(
            f"{shown_id(worker.worker_id)}  {worker.pool}  {phase_of(worker)}  {worker.running} running  "
            f"{worker.waiting + worker.held} waiting  KV {worker.kv_cache_usage:.0%}  "
            f"{worker.tokens_generated:,} tokens  {line(worker.model)}{identity}{adapters}  "
            f"version {worker.version}\n"
        )


def phase_of(worker: Heartbeat) -> str:
    """Return a worker's phase, with why it is unfit, or the state of a swap that runs or was rolled back."""
    if worker.unfit:
        return f"{worker.phase} (unfit: {line(worker.unfit)})"
    swap = worker.swap
    if swap is None or (not swap.busy and swap.state is SwapState.SWITCHED):
        return worker.phase
    return f"{worker.phase} (swap: {swap.state})"


def print_pools(pools: Iterable[PoolStatus]) -> None:
    """Print a line for each pool."""
    for pool in pools:
        phases = [worker.phase for worker in pool.workers]
        workers = ", ".join(f"{phases.count(phase)} {phase}" for phase in sorted(set(phases))) or "none"
        parts = [
            pool.pool,
            "no queue" if pool.ready is None else f"{pool.ready:,} ready",
            f"{pool.held:,} held",
            f"{sum(pool.unfinished.values()):,} unfinished",
            f"workers: {workers}",
        ]
        if pool.oldest_waiting_s is not None:
            parts.append(f"oldest waits {duration(pool.oldest_waiting_s)}")
        if pool.dead_letters:
            parts.append(f"{pool.dead_letters:,} dead letters")
        if pool.paused_at is not None:
            parts.append("paused")
        out("  ".join(parts) + "\n")


def duration(seconds: float) -> str:
    """Return a time for a person."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
