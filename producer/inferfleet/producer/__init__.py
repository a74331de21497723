"""The client: submits jobs and reads their answers, asynchronous (``Fleet``) or blocking (``SyncFleet``)."""

from __future__ import annotations

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_handle import JobHandle
from inferfleet.producer.job_listing import JobFilter
from inferfleet.producer.job_making import JobOptions
from inferfleet.producer.journal_view import JournalLine
from inferfleet.producer.openai.client import openai_client
from inferfleet.producer.retrieval.index import Index
from inferfleet.producer.retrieval.sync_index import SyncIndex
from inferfleet.producer.sessions import Session
from inferfleet.producer.sync import SyncFleet
from inferfleet.producer.sync_job_handle import SyncJobHandle
from inferfleet.producer.sync_session import SyncSession

__all__ = [
    "Fleet",
    "Index",
    "JobFilter",
    "JobHandle",
    "JobOptions",
    "JournalLine",
    "Session",
    "SyncFleet",
    "SyncIndex",
    "SyncJobHandle",
    "SyncSession",
    "openai_client",
]
