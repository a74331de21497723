"""What a command says when it ends before its job does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
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
    """Name the job if the block ends without knowing whether the job was accepted."""
    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt, PublishUnconfirmedError):
        err(f"inferfleet: job {job_id} may have been accepted: check with `inferfleet get {job_id}`\n")
        raise


@contextmanager
def goes_on(job_id: str, command: str | Callable[[], str]) -> Generator[None]:
    """If Ctrl-C or an outage ends the block before the job, name the job and the command that continues.

    A callable is called then: what is left to do may depend on what the block has done.
    """
    try:
        yield
    except (JobFailedError, JobNotFoundError, BrokenPipeError):
        raise
    except (asyncio.CancelledError, KeyboardInterrupt, ServiceUnreachableError):
        left = command if isinstance(command, str) else command()
        err(f"inferfleet: job {job_id} has not ended: continue with `inferfleet {left} {job_id}`\n")
        raise


@contextmanager
def several_go_on(left: Callable[[], int]) -> Generator[None]:
    """If Ctrl-C or an outage ends the block before several jobs, say how many are ``left``."""
    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt, ServiceUnreachableError):
        err(f"inferfleet: jobs that have not ended: {left():,}; continue with the same command\n")
        raise
