"""Converts a worker's engine arguments to vLLM's own.

An engine argument is an option of ``vllm serve`` with underscores: an option of the engine
(``max_model_len``, ``runner``), or an option of the front end that is not about HTTP (``tool_call_parser``,
``chat_template``). It overrides inferfleet's choice.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.chat_utils import load_chat_template
from vllm.tool_parsers import ToolParserManager

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.near_match import did_you_mean

try:
    from vllm.entrypoints.common.cli_args import BaseFrontendArgs, FrontendArgs
except ModuleNotFoundError:  # vLLM 0.32
    from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs, FrontendArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmArguments:
    """The two halves of ``vllm serve``'s options."""

    engine: Any
    front_end: Any

    def namespace(self) -> Namespace:
        """Join both as vLLM's start-up code expects them. Call this once the engine is configured."""
        return Namespace(**vars(self.front_end) | vars(self.engine))


def read_arguments(
    *, model: str, served_names: list[str], max_running: int, engine_args: Mapping[str, Any]
) -> VllmArguments:
    """Set the options that inferfleet relies on, and leave all others to vLLM.

    ``scheduling_policy`` is ``priority``, without which vLLM ignores a job's priority.
    ``generation_config`` is ``vllm``, so that an answer depends on the request, not on a file in the model's
    folder.

    Raises:
        ConfigurationError: vLLM has no such option, or refuses its value.

    """
    engine_options = {field.name for field in fields(AsyncEngineArgs)}
    front_end_options = {field.name for field in fields(BaseFrontendArgs)}
    unknown = sorted(set(engine_args) - engine_options - front_end_options)
    if unknown:
        known = engine_options | front_end_options
        raise ConfigurationError(
            "engine_args: vLLM has no option "
            f"{', '.join(repr(name) + did_you_mean(name, known) for name in unknown)}; they are those of "
            "'vllm serve --help=all', written with underscores"
        )
    chosen: dict[str, Any] = {
        "max_num_seqs": max_running,
        "scheduling_policy": "priority",
        "generation_config": "vllm",
        # With this the usage says how much of the prompt was cached.
        "enable_prompt_tokens_details": True,
        # If a parser is named, use it.
        "enable_auto_tool_choice": bool(engine_args.get("tool_call_parser")),
        **engine_args,
        "model": model,
        "served_model_name": served_names,
    }
    try:
        arguments = VllmArguments(
            engine=AsyncEngineArgs(**{name: chosen[name] for name in engine_options & chosen.keys()}),
            front_end=FrontendArgs(**{name: chosen[name] for name in front_end_options & chosen.keys()}),
        )
        # vLLM itself checks this, and the parsers' names, only after it has loaded the model.
        load_chat_template(arguments.front_end.chat_template)
    except Exception as error:
        raise configuration_error(error, model=model) from error
    _load_parsers(arguments)
    return arguments


def configuration_error(error: Exception, *, model: str) -> ConfigurationError:
    """Make the error that names the refused option, as far as vLLM names it."""
    problem = str(error)
    if isinstance(error, ValidationError):
        problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return ConfigurationError(f"vLLM cannot load {model!r} with these engine_args: {problem}")


def _load_parsers(arguments: VllmArguments) -> None:
    """Import the parsers' plugins and check the names, before a model is loaded in vain."""
    if plugin := arguments.front_end.tool_parser_plugin:
        ToolParserManager.import_tool_parser(plugin)
    if plugin := arguments.engine.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(plugin)
    for option, name, manager in (
        ("tool_call_parser", arguments.front_end.tool_call_parser, ToolParserManager),
        ("reasoning_parser", arguments.engine.reasoning_parser, ReasoningParserManager),
    ):
        known = manager.list_registered()
        if name and name not in known:
            raise ConfigurationError(
                f"engine_args: vLLM has no {option} {name!r}; it has {', '.join(sorted(known))}"
            )
