"""Finds out why a grammar did not compile: vLLM's engine core only says that the request has failed."""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from copy import copy
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.request import StructuredOutputRequest

from inferfleet.worker.engines.vllm.errors import refusal
from inferfleet.worker.ports import GenerationError

_AUTOMATIC: Final = ("xgrammar", "guidance")
"""The backends that ``auto`` chooses from. vLLM accepts a grammar that either of them can read, but its
engine core uses only the one that its first grammar selected. So it may fail to compile an accepted
grammar."""

_LONGEST_REASON: Final = 1000


async def grammar_problem(engine: Any, sampling_params: Any) -> GenerationError | None:
    """Compile the grammar of a failed request again in this process, and return what is wrong with it.

    ``None`` if nothing is wrong.
    """
    return await asyncio.to_thread(_compile, engine.vllm_config, sampling_params)


def _compile(config: Any, sampling_params: Any) -> GenerationError | None:
    chosen = config.structured_outputs_config.backend
    for backend in _AUTOMATIC if chosen == "auto" else (chosen,):
        params = copy(sampling_params.structured_outputs)
        params._backend = backend
        request = StructuredOutputRequest(params=params)
        manager = StructuredOutputManager(config)
        # vLLM's own function would log the failure with a traceback.
        manager._create_grammar = partial(_create_grammar, manager)
        manager._use_async_grammar_compilation = False
        manager.grammar_init(
            SimpleNamespace(
                structured_output_request=request, sampling_params=SimpleNamespace(structured_outputs=params)
            )
        )
        if isinstance(request.grammar, Exception):
            words = " ".join(str(request.grammar).split())[:_LONGEST_REASON]
            return refusal(f"vLLM cannot compile the grammar that the answer has to follow: {words}")
    return None


def _create_grammar(manager: Any, request: Any) -> Any:
    return manager.backend.compile_grammar(*request.structured_output_request.structured_output_key)
