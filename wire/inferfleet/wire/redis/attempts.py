"""An attempt of a job: its fence, and the replies to its start and its writes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from inferfleet.schemas.journal import RestartReason
from inferfleet.schemas.result import Result


class StartStatus(StrEnum):
    """The reply to the start of an attempt."""

    STARTED = "started"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    DONE = "done"
    BUSY = "busy"
    EARLY = "early"
    SUSPECT = "suspect"


SUSPECT_AFTER = 2
"""After so many attempts without an end a job is a suspect, and runs beside no other suspect: its neighbours
died with it, and must not use up their attempts because of it."""


DEATHS_PER_ATTEMPT = 4
"""A job may lose its worker so many times ``max_attempts``, even if its answer progressed each time. Without
this limit a job that kills its worker a few tokens later each time would kill hundreds."""


class WriteStatus(StrEnum):
    """The reply to a write of a worker."""

    OK = "ok"
    CANCEL = "cancel"
    INTERRUPT = "interrupt"
    FENCED = "fenced"
    MISSING = "missing"


START_STATUSES: Final = {verdict.encode(): verdict for verdict in StartStatus}
WRITE_STATUSES: Final = {written.encode(): written for written in WriteStatus}
"""The statuses by the scripts' replies. Calling the enumeration would take three times as long."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The fence that every write of an attempt carries. ``token`` is unique, even if Redis loses its data."""

    token: str
    attempt: int

    def restarted(self) -> Fence:
        """Return the fence of the attempt after it has restarted its answer.

        If Redis loses the restart in a failover, it refuses the writes behind it.
        """
        return Fence(f"{self.token}+restarted", self.attempt)


@dataclass(frozen=True, slots=True)
class Started:
    """The reply to the start of an attempt.

    ``fence`` belongs to the new attempt, if there is one. With ``BUSY``, ``busy_s`` is the rest of the other
    worker's lease, or of the pause before a retry; with ``EARLY``, it is the time until ``not_before``.
    ``tokens`` is how many tokens the journal holds; ``restart`` is why this attempt cannot resume from them,
    and has to restart the answer before it generates. ``model_identity`` is that of the model to which the
    tokens belong or will belong. ``charged`` is how many attempts are charged. ``reply_to`` is the client
    whose reply stream gets a line at the end.
    """

    status: StartStatus
    fence: Fence
    tokens: int
    charged: int
    reply_to: str
    restart: RestartReason | None = None
    model_identity: str | None = None
    busy_s: float = 0.0
    first_entered_ms: int | None = None
    """When the record was made, or ``not_before`` if that is later; ``None`` if this is not the job's first
    attempt, or our client did not submit it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The reply to the end of a job that nobody runs.

    ``result`` is the committed result. Without one, the job had ended before; or somebody has it, and the
    caller should try again after ``busy_s``.
    """

    result: Result | None
    busy_s: float
