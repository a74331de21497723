"""The contract: jobs, results, journal entries, settings and names. Pure data without network access."""

from __future__ import annotations

from inferfleet.schemas.endpoints import Endpoint
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import Job, JobState, Priority
from inferfleet.schemas.journal import JournalEntry
from inferfleet.schemas.result import JobRecord, Result, Timings, Usage

__all__ = [
    "Endpoint",
    "Failure",
    "FailureCode",
    "Job",
    "JobRecord",
    "JobState",
    "JournalEntry",
    "Priority",
    "Result",
    "Timings",
    "Usage",
]
