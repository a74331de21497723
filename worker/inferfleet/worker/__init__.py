"""Everything that consumes: takes jobs from the queue, runs them on an engine, keeps the journal.

What is here is what another engine needs; it implements ``Engine`` and nothing else. The process itself is
``inferfleet.worker.worker.Worker``, and is not loaded by this.
"""

from __future__ import annotations

from inferfleet.worker.ports import (
    Completion,
    Engine,
    EngineDeadError,
    EngineStats,
    Generation,
    GenerationError,
)

__all__ = ["Completion", "Engine", "EngineDeadError", "EngineStats", "Generation", "GenerationError"]
