"""``inferfleet worker``: run one worker process."""

from __future__ import annotations

from typing import assert_never

import uvloop

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import EngineKind, WorkerSettings
from inferfleet.worker.log import configure_logging
from inferfleet.worker.ports import Engine
from inferfleet.worker.worker import Worker


def make_engine(settings: WorkerSettings) -> Engine:
    """Make the engine that the settings name. The adapter's libraries are imported only now.

    Raises:
        ConfigurationError: No model is named, or the engine's extra is not installed.

    """
    if not settings.model:
        raise ConfigurationError("no model is named: give --model, a folder or a name (INFERFLEET_MODEL)")
    match settings.engine:
        case EngineKind.SIMULATED:
            from inferfleet.worker.engines.simulated import SimulatedEngine

            return SimulatedEngine(
                model=settings.model, max_running=settings.max_running, engine_args=settings.engine_args
            )
        case EngineKind.VLLM:
            try:
                from inferfleet.worker.engines.vllm_engine import VllmEngine
            except ModuleNotFoundError as error:
                raise ConfigurationError(
                    f"the vllm engine needs the package {error.name!r}: pip install 'inferfleet[vllm]'"
                ) from error
            return VllmEngine(
                model=settings.model, max_running=settings.max_running, engine_args=settings.engine_args
            )
        case _:
            assert_never(settings.engine)


def run_worker(settings: WorkerSettings) -> None:
    """Run a worker until it is told to stop. Errors are those of ``Worker.run``."""
    configure_logging(settings)
    engine = make_engine(settings)
    uvloop.run(Worker(settings=settings, engine=engine).run())
