"""The process of ``inferfleet agent run``: its log and its event loop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from inferfleet.agents.loading import load_agents
from inferfleet.agents.runner import run_agents
from inferfleet.agents.settings import RunnerSettings
from inferfleet.schemas.settings import LogFormat, read_settings
from inferfleet.worker.log import logging_to_stderr


def run_process(places: Sequence[str], *, log_format: LogFormat | None, **options: Any) -> None:
    """Run the agents at these places until SIGTERM. ``options`` override the settings.

    Raises:
        ConfigurationError: A setting is invalid, or a place has no agent.
        InferfleetError: A service did not answer at the start.

    """
    remarks: list[str] = []
    settings = read_settings(
        RunnerSettings,
        remarks.append,
        log_format=log_format or (LogFormat.CONSOLE if sys.stderr.isatty() else None),
        **options,
    )
    agents = load_agents(places)
    with logging_to_stderr(settings):
        for remark in remarks:
            logging.getLogger(__name__).warning("%s", remark)
        uvloop.run(run_agents(agents, settings))
