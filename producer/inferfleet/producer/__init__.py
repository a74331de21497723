"""Everything that publishes: the client, asynchronous and blocking, and the command line."""

from __future__ import annotations

from inferfleet.producer.fleet import Fleet, JobOptions
from inferfleet.producer.journal_view import JournalLine
from inferfleet.producer.sync import SyncFleet

__all__ = ["Fleet", "JobOptions", "JournalLine", "SyncFleet"]
