"""An attempt of a job, as a worker and the job's record speak of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from inferfleet.schemas.journal import RestartReason
from inferfleet.schemas.result import Result


class StartStatus(StrEnum):
    """What came of the wish to start an attempt."""

    STARTED = "started"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    DONE = "done"
    BUSY = "busy"
    SUSPECT = "suspect"


SUSPECT_AFTER = 2
"""Attempts without an end after which a job runs beside no other suspect: its neighbours died with it, and
must not be counted out for it."""


DEATHS_PER_ATTEMPT = 4
"""So many times ``max_attempts`` a job may lose its worker, although its answer came on each time. Without
this limit a job that kills its worker a few tokens later each time would kill hundreds."""


class WriteStatus(StrEnum):
    """What came of a write by a worker."""

    OK = "ok"
    CANCEL = "cancel"
    INTERRUPT = "interrupt"
    FENCED = "fenced"
    MISSING = "missing"


START_STATUSES: Final = {verdict.encode(): verdict for verdict in StartStatus}
WRITE_STATUSES: Final = {written.encode(): written for written in WriteStatus}
"""By what the scripts answer. Calling an enumeration costs three times as much."""


@dataclass(frozen=True, slots=True)
class Fence:
    """What every write of an attempt carries. ``token`` is unique, also after Redis has lost its data."""

    token: str
    attempt: int

    def restarted(self) -> Fence:
        """The fence of an attempt that began its answer again.

        A write behind a restart that Redis has lost, in a failover, does not fit the record any more.
        """
        return Fence(f"{self.token}+restarted", self.attempt)


@dataclass(frozen=True, slots=True)
class Started:
    """The answer to a start.

    ``fence`` belongs to the new attempt, if there is one; with ``BUSY``, ``busy_s`` is what is left of the
    other worker's lease, or of the pause before a retry. ``tokens`` is how many tokens the journal holds,
    ``restart`` why this attempt cannot continue them: it has to begin the answer again before it generates.
    ``model_identity`` is that of the model the tokens belong to, or will. ``charged`` is how many attempts
    count towards the job's limit. ``reply_to`` is the client to tell of the end.
    """

    status: StartStatus
    fence: Fence
    tokens: int
    charged: int
    reply_to: str
    restart: RestartReason | None = None
    model_identity: str | None = None
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """What came of the wish to end a job that nobody runs.

    ``result`` is what was committed. Without one, the job has ended before, or ``busy_s`` is after how long
    to ask again, because somebody has it.
    """

    result: Result | None
    busy_s: float
