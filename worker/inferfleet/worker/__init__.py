"""The worker: takes jobs from the queue, runs them on an engine, keeps the journal.

This package exports what the author of an engine needs. An engine implements ``Engine``, and its package
offers it as an entry point in the group ``inferfleet.engines`` (docs/how-to/write-an-engine.md). The worker
itself is ``inferfleet.worker.worker.Worker``, which this module does not import.
"""

from __future__ import annotations

from inferfleet.schemas.journal import TokenChunk
from inferfleet.worker.completion import text_completion
from inferfleet.worker.ports import (
    Completion,
    Engine,
    EngineDeadError,
    EngineStats,
    Generation,
    GenerationError,
    ModelIdentity,
    NotContinuableError,
    PromptReader,
)

__all__ = [
    "Completion",
    "Engine",
    "EngineDeadError",
    "EngineStats",
    "Generation",
    "GenerationError",
    "ModelIdentity",
    "NotContinuableError",
    "PromptReader",
    "TokenChunk",
    "text_completion",
]
