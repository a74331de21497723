"""For tests of what is built on inferfleet: applications that use a fleet, and engines that a worker runs.

``inferfleet.testing.plugin`` is a pytest plugin that is loaded by itself: services, clients, and workers
whose answers the test scripts (docs/how-to/test-your-application.md). ``inferfleet.testing.engine_suite`` is
what every engine has to pass (docs/how-to/write-an-engine.md).

The names here are for annotations, and imported when they are used: pytest loads this package in every
project.
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
