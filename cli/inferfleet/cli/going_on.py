"""What to say when a wait ends before its job does."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from inferfleet.cli.terminal import err
from inferfleet.schemas.errors import (
    JobFailedError,
    JobNotFoundError,
    PublishUnconfirmedError,
    ServiceUnreachableError,
)


@contextmanager
def submitting(job_id: str) -> Generator[None]:
    """Name the job if the block is interrupted, or ends in doubt: it may be accepted or not."""
    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt, PublishUnconfirmedError):
        err(f"inferfleet: job {job_id} may be accepted or not: `inferfleet get {job_id}` tells\n")
        raise


@contextmanager
def goes_on(job_id: str, command: str) -> Generator[None]:
    """Name the job and the command that goes on if the block ends before the job: by Ctrl-C or an outage."""
    try:
        yield
    except (JobFailedError, JobNotFoundError, BrokenPipeError):
        raise
    except (asyncio.CancelledError, KeyboardInterrupt, ServiceUnreachableError):
        err(f"inferfleet: job {job_id} goes on: `inferfleet {command} {job_id}` goes on with it\n")
        raise
