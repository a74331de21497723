"""The names that vLLM knows: of requests, which are known to us, and of its options, told when misspelt."""

from __future__ import annotations

from typing import get_args

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.request_members import KNOWN_MEMBERS
from inferfleet.worker.engines.vllm.arguments import read_arguments


@pytest.mark.parametrize(
    "model",
    [
        ChatCompletionRequest,
        CompletionRequest,
        EmbeddingCompletionRequest,
        RerankRequest,
        *get_args(ScoreRequest),
    ],
)
def test_no_member_that_vllm_knows_is_taken_for_a_misspelt_one(model):
    assert set(model.model_fields) <= KNOWN_MEMBERS


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("max_model_length", "max_model_len"),
        ("gpu_memory_utilisation", "gpu_memory_utilization"),
        ("tool-call-parser", "tool_call_parser"),
    ],
)
def test_a_misspelt_option_is_told_with_what_may_be_meant(misspelt, meant):
    with pytest.raises(ConfigurationError, match=rf"no option '{misspelt}' \(did you mean '{meant}'\?\)"):
        read_arguments(model="m", served_names=["m"], max_running=1, engine_args={misspelt: 1})
