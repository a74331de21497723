"""The settings of the demo's workers."""

from __future__ import annotations

from typing import Any

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import LogFormat, WorkerSettings, read_settings
from inferfleet.worker.engine_factory import find_engine

DEFAULTS: dict[str, Any] = {
    # So few that jobs queue up, and priorities matter.
    "max_running": 16,
    "look_ahead": 4,
    # How long the others leave the jobs of the killed worker alone: long enough to be seen, and no longer.
    "lease_s": 3.0,
    "heartbeat_interval_s": 1.0,
    # Tokens that a killed worker has not written are generated twice. Answers take seconds here, not minutes.
    "journal_flush_s": 0.2,
    # Ctrl-C should not take long, and nobody needs the unfinished answers.
    "drain_timeout_s": 2.0,
    "log_format": LogFormat.CONSOLE,
}
"""The demo's settings, unless the environment overrides them."""

MEMORY_SHARE = 0.8
"""The share of the device's memory for all vLLM workers together. Alone, each would take nine tenths."""


def worker_settings(engine: str, model: str | None, *, workers: int) -> WorkerSettings:
    """Read the environment, and add the demo's own defaults for ``workers`` workers on one machine.

    Raises:
        ConfigurationError: A variable is invalid, no engine has this name, or vLLM has no model.

    """
    given = read_settings(WorkerSettings).model_fields_set
    chosen = {name: value for name, value in DEFAULTS.items() if name not in given}
    settings = read_settings(WorkerSettings, engine=engine, model=model, **chosen)
    # Each worker would report this itself, but only once the services run.
    find_engine(settings.engine)
    if settings.engine != "vllm":
        return settings
    if not settings.model:
        raise ConfigurationError("--engine vllm needs --model, a folder or a name (INFERFLEET_MODEL)")
    memory = {"gpu_memory_utilization": round(MEMORY_SHARE / workers, 3)}
    return settings.model_copy(update={"engine_args": memory | settings.engine_args})
