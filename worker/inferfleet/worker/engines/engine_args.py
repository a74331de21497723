"""Reads ``--engine-args`` for the engines that declare their arguments as a Pydantic model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.near_match import did_you_mean

Arguments = TypeVar("Arguments", bound=BaseModel)


def read_engine_args(model: type[Arguments], engine_args: Mapping[str, Any], *, engine: str) -> Arguments:
    """Read the arguments of an engine.

    Raises:
        ConfigurationError: An argument is unknown or has an impossible value; the message names it.

    """
    try:
        return model.model_validate(dict(engine_args))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            meant = did_you_mean(name, model.model_fields)
            problem = f"has no argument {name!r}{meant}; it has {', '.join(model.model_fields)}"
        elif name:
            problem = f"cannot use its argument {name!r}: {first['msg']}"
        else:
            problem = f"cannot use its arguments: {first['msg']}"
        raise ConfigurationError(f"the {engine} engine {problem} (INFERFLEET_ENGINE_ARGS)") from error
