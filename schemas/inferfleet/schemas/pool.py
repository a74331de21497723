"""What is known of a pool at one moment."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from inferfleet.schemas.heartbeat import Heartbeat
from inferfleet.schemas.job import PoolName
from inferfleet.schemas.result import Count
from inferfleet.schemas.wire_model import WireModel


class PoolStatus(WireModel):
    """A pool: its queue, its unfinished jobs and its workers.

    ``ready`` is how many messages wait in the pool's queue, and ``dead_letters`` in that of its dead letters;
    ``None`` if there is no such queue. ``held`` is how many jobs the workers have, by their heartbeats:
    running, or waiting for a slot. ``unfinished`` counts all unfinished jobs by priority, the most urgent
    first: those in the queue, those that workers have, those that wait for a retry, and turns that wait in
    lanes. ``oldest_waiting_s`` is how long the oldest job that does not run has waited, ``None`` if none
    waits. ``paused_at`` is when the pool was paused, ``None`` unless it is. ``required_identity`` is the
    identity that the models of its workers must have, ``None`` if any will do.
    """

    pool: PoolName
    paused_at: AwareDatetime | None = None
    required_identity: str | None = None
    queue_max_length: Count | None = None
    ready: Count | None = None
    held: Count = 0
    dead_letters: Count | None = None
    unfinished: dict[Annotated[int, Field(ge=0, le=9)], Count]
    oldest_waiting_s: float | None = None
    workers: tuple[Heartbeat, ...] = ()
