"""From settings to an engine. An adapter's libraries are imported only when it is chosen."""

from __future__ import annotations

from typing import assert_never

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import EngineKind, WorkerSettings
from inferfleet.worker.ports import Engine


def make_engine(settings: WorkerSettings) -> Engine:
    """Make the engine that the settings name.

    Raises:
        ConfigurationError: No model is named, the extra is not installed, or an argument is wrong.

    """
    match settings.engine:
        case EngineKind.SIMULATED:
            from inferfleet.worker.engines.simulated import SimulatedEngine

            return SimulatedEngine(
                model=settings.model or "simulated",
                max_running=settings.max_running,
                engine_args=settings.engine_args,
            )
        case EngineKind.VLLM:
            if not settings.model:
                raise ConfigurationError(
                    "the vllm engine needs a model: give --model, a folder or a name (INFERFLEET_MODEL)"
                )
            try:
                from inferfleet.worker.engines.vllm.engine import VllmEngine
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("inferfleet"):
                    raise
                raise ConfigurationError(
                    f"the vllm engine needs the package {error.name!r}: pip install 'inferfleet[vllm]', "
                    "or try --engine simulated"
                ) from error
            return VllmEngine(
                model=settings.model, max_running=settings.max_running, engine_args=settings.engine_args
            )
        case _:
            assert_never(settings.engine)
