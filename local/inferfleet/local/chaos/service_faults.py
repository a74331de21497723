"""The faults of services: what a soak needs to know of them, and those of one RabbitMQ and one Redis."""

from __future__ import annotations

import random
from collections.abc import Collection
from enum import StrEnum
from typing import Protocol

from inferfleet.local.chaos.harness import Harness
from inferfleet.schemas import JournalEntry


class ServiceFault(StrEnum):
    """The kinds of faults of services; those of a cluster are in ``cluster_faults``."""

    REDIS_RESTART = "redis_restart"
    REDIS_EMPTIED = "redis_emptied"
    BROKER_RESTART = "broker_restart"


class NothingHitError(Exception):
    """A fault was injected and changed nothing: the run has not tested what it should."""


class ServiceFaults(Protocol):
    """Draws and injects the faults of the services of one soak."""

    every_s: tuple[float, float]
    """The pause between two of these faults in seconds, at least and at most."""

    earlier_journals: dict[str, tuple[JournalEntry, ...]]
    """The journals of jobs that had ended, from shortly before Redis lost all its data."""

    async def draw(self, rng: random.Random) -> StrEnum:
        """Draw the next fault, once there is one that may be injected."""
        ...

    async def inject(self, fault: StrEnum) -> None:
        """Inject a fault, and end it. Must not be cancelled in between.

        Raises:
            NothingHitError: It changed nothing.
            ServiceUnreachableError: A service does not start again.

        """
        ...

    async def until_each_was_tried(self) -> None:
        """Wait until each planned fault was injected once."""
        ...

    async def unknown(self, job_ids: Collection[str]) -> set[str]:
        """Return those of these jobs that have ended, and of which Redis knows nothing any more."""
        ...

    async def lost_results(self, job_ids: Collection[str]) -> frozenset[str]:
        """Return those of these jobs of which Redis has lost a result."""
        ...


class SingleServiceFaults:
    """Restarts of one RabbitMQ and one Redis, and, if asked for, a Redis that loses all its data."""

    every_s = (8.0, 20.0)

    def __init__(self, harness: Harness, *, empty_redis: bool) -> None:
        self._harness = harness
        self._weights = {ServiceFault.REDIS_RESTART: 4, ServiceFault.BROKER_RESTART: 2}
        if empty_redis:
            self._weights[ServiceFault.REDIS_EMPTIED] = 2
        self._lost: set[str] = set()
        self.earlier_journals: dict[str, tuple[JournalEntry, ...]] = {}

    async def draw(self, rng: random.Random) -> ServiceFault:
        """Draw the next fault by its weight."""
        return rng.choices(list(self._weights), list(self._weights.values()))[0]

    async def inject(self, fault: StrEnum) -> None:
        """Restart a service."""
        match fault:
            case ServiceFault.BROKER_RESTART:
                await self._harness.restart_broker()
            case ServiceFault.REDIS_EMPTIED:
                self._lost |= await self._harness.empty_store()
            case _:
                await self._harness.restart_store()

    async def until_each_was_tried(self) -> None:
        """Do not wait: the weights are the plan."""

    async def unknown(self, job_ids: Collection[str]) -> set[str]:
        """Return those of these jobs whose results Redis had when it was emptied."""
        return self._lost & set(job_ids)

    async def lost_results(self, job_ids: Collection[str]) -> frozenset[str]:
        """Return the same: nothing else loses a result here."""
        return frozenset(self._lost & set(job_ids))
