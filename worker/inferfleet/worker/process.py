"""The process of a worker: its log, its event loop, its garbage collector."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import uvloop

from inferfleet.schemas.settings import LogFormat, WorkerSettings
from inferfleet.worker.engine_factory import make_engine
from inferfleet.worker.foreign_output import foreign_output_logged
from inferfleet.worker.log import logging_to_stderr
from inferfleet.worker.ports import Engine
from inferfleet.worker.start_times import StartTimes
from inferfleet.worker.worker import Worker

logger = logging.getLogger(__name__)

GC_THRESHOLD = 20_000
"""New objects between two collections. A job makes a few hundred objects, and hardly any reference cycle."""


def run_process(
    settings: WorkerSettings,
    make: Callable[[WorkerSettings], Engine] = make_engine,
    *,
    remarks: Iterable[str] = (),
) -> None:
    """Run a worker until SIGTERM, and set up the process for it. ``remarks`` go to its log.

    Raises:
        InferfleetError: A setting is invalid, or a service did not answer at the start.
        EngineDeadError: The engine died.

    """
    times = StartTimes.of_process()
    foreign_output = foreign_output_logged if settings.log_format is LogFormat.JSON else nullcontext
    with logging_to_stderr(settings, worker_id=settings.worker_id) as log, foreign_output():
        for remark in remarks:
            logger.warning("%s", remark)
        worker = Worker(
            settings=settings,
            engine=make(settings),
            make=make,
            on_warm=_freeze_gc,
            on_switch=_collect_former_model,
            lines_dropped=lambda: log.dropped,
            start_times=times,
        )
        uvloop.run(worker.run())


def _freeze_gc() -> None:
    """Exclude permanent objects from collection, as vLLM's server does: libraries and the model."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def _collect_former_model() -> None:
    """Collect what a model has left that another one replaced."""
    gc.unfreeze()
    _freeze_gc()
