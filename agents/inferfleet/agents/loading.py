"""Finds the agents that a command line names."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from inferfleet.agents.agent import Agent
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.foreign_code import raised_by


def load_agents(places: Iterable[str]) -> list[Agent]:
    """Import agents by their places, ``module:name``; modules may be in the current folder.

    Raises:
        ConfigurationError: A place has no agent.

    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return [_load(place) for place in places]


def _load(place: str) -> Agent:
    module, colon, name = place.partition(":")
    if not colon or not module or not name:
        raise ConfigurationError(f"{place!r} is not of the form module:name, like my_agents:planner")
    try:
        found = import_module(module)
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and f"{module}.".startswith(f"{error.name}.")
        ):
            raise ConfigurationError(
                f"{place!r}: there is no module {error.name!r}, neither in the current folder nor installed"
            ) from error
        raise ConfigurationError(f"{place!r} cannot be imported: {raised_by(error)}") from error
    agent = getattr(found, name, None)
    if not isinstance(agent, Agent):
        what = "is not there" if agent is None else f"is a {type(agent).__name__}, not an Agent"
        agents = ", ".join(sorted(each for each, value in vars(found).items() if isinstance(value, Agent)))
        raise ConfigurationError(f"{place!r} {what}; the agents of {module!r} are: {agents or 'none'}")
    return agent
