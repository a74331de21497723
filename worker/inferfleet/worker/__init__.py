"""Everything that consumes: takes jobs from the queue, runs them on an engine, keeps the journal.

What is here is what another engine needs: it implements ``Engine``, and its package offers it as an entry
point of the group ``inferfleet.engines`` (docs/how-to/write-an-engine.md). The process itself is
``inferfleet.worker.worker.Worker``, and is not loaded by this.
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
