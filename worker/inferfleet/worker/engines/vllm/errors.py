"""Translates vLLM's errors into those of the engine port.

vLLM itself distinguishes the client's errors (4xx), for which no retry helps, from its own (5xx).
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import torch
from pydantic import ValidationError
from vllm.entrypoints.serve import create_error_response
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
from vllm.v1.engine.exceptions import EngineGenerateError

from inferfleet.schemas import FailureCode
from inferfleet.worker.engines.redaction import without_prompt
from inferfleet.worker.ports import EngineDeadError, GenerationError

_LENGTH_PARAMETERS: Final = frozenset({"input_tokens", "input_text"})
"""vLLM's parameter names in errors about a prompt that is longer than the model's context."""

_PROBLEMS_SHOWN: Final = 3


def refusal(problem: str) -> GenerationError:
    """Make the error for a request that this engine can never answer."""
    return GenerationError(FailureCode.INVALID_REQUEST, problem)


def prompt_too_long(tokens: int, *, max_model_len: int) -> GenerationError:
    """Make the error for a prompt that leaves no room for a single token of answer."""
    return GenerationError(
        FailureCode.PROMPT_TOO_LONG,
        f"the prompt has {tokens} tokens, and the model takes {max_model_len} for prompt and answer "
        "together; shorten the prompt",
    )


def translate(
    error: Exception, body: Mapping[str, Any], *, max_model_len: int
) -> GenerationError | EngineDeadError:
    """Translate an exception of vLLM. The message never quotes the prompt."""
    match error:
        case VllmEngineDeadError():
            return EngineDeadError("vLLM's engine core has died; its log says why")
        case EngineGenerateError() if _out_of_memory(error):
            return GenerationError(FailureCode.OUT_OF_MEMORY, "vLLM ran out of memory for this request")
        case EngineGenerateError():
            return GenerationError(FailureCode.ENGINE_ERROR, f"vLLM failed: {type(error.__cause__).__name__}")
        case ValidationError():
            return _refused_by_vllm(_problems(error), body)
        case VLLMValidationError(parameter=parameter) if parameter in _LENGTH_PARAMETERS:
            return GenerationError(FailureCode.PROMPT_TOO_LONG, str(error.args[0]))
        case VLLMValidationError(parameter="max_tokens", value=0) if not _asks_for_nothing(body):
            # vLLM reduces max_tokens to the room that the prompt leaves.
            return prompt_too_long(max_model_len, max_model_len=max_model_len)
        case VLLMValidationError():
            # str() of the error would quote the value.
            return _refused_by_vllm(str(error.args[0]), body)
        case _ if _out_of_memory(error):
            return GenerationError(FailureCode.OUT_OF_MEMORY, "vLLM ran out of memory for this request")
        case _:
            return from_response(create_error_response(error), body)


def from_response(response: Any, body: Mapping[str, Any]) -> GenerationError:
    """Translate vLLM's error response into an exception."""
    if response.error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _refused_by_vllm(response.error.message, body)
    message = without_prompt(response.error.message, body)
    return GenerationError(FailureCode.ENGINE_ERROR, f"vLLM failed: {message}")


def _refused_by_vllm(message: str, body: Mapping[str, Any]) -> GenerationError:
    words = " ".join(without_prompt(message, body).split())
    return refusal(f"vLLM refuses the request: {words}")


def _problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems[:_PROBLEMS_SHOWN]]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        error = error.__cause__
    return False


def _asks_for_nothing(body: Mapping[str, Any]) -> bool:
    return 0 in (body.get("max_tokens"), body.get("max_completion_tokens"))
