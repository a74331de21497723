"""Tools to test applications that use a fleet, and engines that a worker runs.

``inferfleet.testing.plugin`` is a pytest plugin that pytest loads automatically. It has fixtures for
services, clients, and workers whose answers the test scripts (docs/how-to/test-your-application.md).
``inferfleet.testing.engine_suite`` is the conformance suite of engines (docs/how-to/write-an-engine.md).

The names here are for annotations. They are imported at their first use, because pytest loads this package in
every project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferfleet.testing.workers import RunningWorker, SyncRunningWorker, SyncWorkers, Workers

__all__ = ["RunningWorker", "SyncRunningWorker", "SyncWorkers", "Workers"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from inferfleet.testing import workers

    return getattr(workers, name)
