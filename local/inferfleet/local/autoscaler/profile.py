"""Engine profiles: how fast one replica is, for a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import orjson
from pydantic import Field, ValidationError

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.simulated import SimulatedParameters


class EngineProfile(SimulatedParameters):
    """One replica: the simulated engine's arguments, and the worker's settings that affect its speed.

    ``load_s`` is the time from the decision to start it until it takes jobs: node, image, model.
    """

    load_s: Annotated[float, Field(ge=0)] = 60.0
    max_running: Annotated[int, Field(ge=1)] = 64
    look_ahead: Annotated[int, Field(ge=0)] = 8
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0


PROFILES: Mapping[str, EngineProfile] = MappingProxyType({"llama-3.1-8b-h100": EngineProfile()})
"""The profiles by name, derived, not measured; worker/engines/simulated/parameters.py has the sources."""


def read_profile(name: str) -> EngineProfile:
    """Return a profile by its name, or read it from a JSON file with any of the fields.

    Raises:
        ConfigurationError: There is no such profile or file, or the file is invalid.

    """
    if name in PROFILES:
        return PROFILES[name]
    try:
        return EngineProfile.model_validate(orjson.loads(Path(name).read_bytes()))
    except OSError as error:
        raise ConfigurationError(
            f"no engine profile {name!r}: neither a file nor one of {', '.join(PROFILES)}"
        ) from error
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"{name} is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{name}: {where}: {first['msg']}; an engine profile has {', '.join(EngineProfile.model_fields)}"
        ) from error
