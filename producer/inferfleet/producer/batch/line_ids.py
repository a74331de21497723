"""The ids of a batch and of its jobs.

A job's id says which line of which batch it answers. So a batch that continues submits a line as the same job
as before, and knows from the ids in its output which lines are done.

An id is a UUIDv8 (RFC 9562): 78 random bits that the jobs of a batch share, 36 bits for the number of the
line, and 8 bits for the number of the try. The batch's own id has line 0.
"""

from __future__ import annotations

import secrets
from typing import Final
from uuid import UUID

TRIES: Final = 16
"""How many jobs a line may have until it fails: another one whenever the result of the last has expired.

A try can be used again once its idempotency key has expired (INFERFLEET_QUEUED_TTL_S, a week by default), and
with the default settings a week has seven results at most. A cancel looks for them all.
"""

RETRIES: Final = 2**8 // TRIES - 1
"""How often the lines that have failed may run again: each time with as many tries."""

MAX_LINES: Final = 2**36 - 1

_TRY_BITS: Final = 8
_OF_THE_LINE: Final = (1 << 36 + _TRY_BITS) - 1
_BELOW_THE_TIME: Final = (1 << 80) - 1
_VERSION: Final = 0xF << 76, 0x8 << 76
_VARIANT: Final = 0b11 << 62, 0b10 << 62


def new_batch_id(*, at_ms: int | None = None) -> str:
    """Make the id of a batch. With a time, ids sort by it, and 30 of their bits are random."""
    value = secrets.randbits(128) & ~_OF_THE_LINE
    if at_ms is not None:
        value = value & _BELOW_THE_TIME | at_ms << 80
    for mask, bits in (_VERSION, _VARIANT):
        value = value & ~mask | bits
    return str(UUID(int=value))


def line_job_id(batch_id: str, line: int, attempt: int = 0) -> str:
    """Return the id of the job that answers a line; lines are counted from 1, tries from 0."""
    return str(UUID(int=UUID(batch_id).int | line << _TRY_BITS | attempt))


def try_of(job_id: str) -> int:
    """Return which try of its line a job is."""
    return UUID(job_id).int & (1 << _TRY_BITS) - 1


def line_of(batch_id: str, job_id: str) -> int | None:
    """Return the line that a job of the batch answers; ``None`` if the job is not of this batch."""
    try:
        value = UUID(job_id).int
    except ValueError:
        return None
    if value & ~_OF_THE_LINE != UUID(batch_id).int:
        return None
    return (value & _OF_THE_LINE) >> _TRY_BITS
