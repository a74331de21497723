"""Errors with which the simulated engine refuses a request."""

from __future__ import annotations

from inferfleet.schemas import FailureCode
from inferfleet.worker.ports import GenerationError


def refusal(problem: str) -> GenerationError:
    """Make the error for a request that this engine can never answer."""
    return GenerationError(
        FailureCode.INVALID_REQUEST, f"the simulated engine refuses the request: {problem}"
    )


def prompt_too_long(tokens: int, *, max_model_len: int) -> GenerationError:
    """Make the error for a prompt that leaves no room for a single token of answer."""
    return GenerationError(
        FailureCode.PROMPT_TOO_LONG,
        f"the prompt has {tokens} tokens, and the model takes {max_model_len} for prompt and answer "
        "together; shorten the prompt",
    )
