"""Batches: the requests of a file, run on a fleet, with their answers in another file."""

from __future__ import annotations

from inferfleet.producer.batch.batch import Batch, BatchStatus, batch_status, stop_run
from inferfleet.producer.batch.plan import BatchPlan
from inferfleet.producer.batch.progress import BatchProgress

__all__ = ["Batch", "BatchPlan", "BatchProgress", "BatchStatus", "batch_status", "stop_run"]
