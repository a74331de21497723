"""Batches: the requests of a file, run on a fleet, with their answers in another file."""

from __future__ import annotations

from inferfleet.producer.batch.batch import Batch, BatchPlan, BatchProgress, BatchStatus, batch_status

__all__ = ["Batch", "BatchPlan", "BatchProgress", "BatchStatus", "batch_status"]
