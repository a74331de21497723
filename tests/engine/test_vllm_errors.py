"""Each error of vLLM's becomes one of the worker's codes, which say whether to try again."""

from __future__ import annotations

import pytest
import torch
from vllm.exceptions import QueueOverflowError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError
from vllm.v1.engine.exceptions import EngineGenerateError

from inferfleet.schemas import FailureCode
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.worker.engines.vllm.errors import translate
from inferfleet.worker.ports import EngineDeadError, GenerationError

SECRET = "my secret word"
BODY = {"messages": [{"role": "user", "content": SECRET}]}


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), FailureCode.OUT_OF_MEMORY),
        (torch.OutOfMemoryError(), FailureCode.OUT_OF_MEMORY),
        (caused_by(EngineGenerateError(), torch.OutOfMemoryError()), FailureCode.OUT_OF_MEMORY),
        (caused_by(EngineGenerateError(), KeyError(SECRET)), FailureCode.ENGINE_ERROR),
        (QueueOverflowError(), FailureCode.ENGINE_ERROR),
        (RuntimeError(f"could not say {SECRET}"), FailureCode.ENGINE_ERROR),
        (ValueError(f"could not read {SECRET}"), FailureCode.INVALID_REQUEST),
        (VLLMValidationError("no", parameter="messages", value=SECRET), FailureCode.INVALID_REQUEST),
    ],
    ids=repr,
)
def test_an_error_of_vllm_has_a_code_that_says_whether_to_try_again(error, code):
    translated = translate(error, BODY, max_model_len=1024)

    assert isinstance(translated, GenerationError)
    assert translated.code is code
    assert SECRET not in str(translated)


def test_a_dead_engine_core_is_the_end_for_all_requests():
    assert isinstance(translate(VllmEngineDeadError(), BODY, max_model_len=1024), EngineDeadError)


MESSAGES = [
    {"role": "system", "content": SECRET},
    {"role": "narrator", "content": "tokens"},
    {"role": "assistant", "content": "assistant", "tool_calls": [{"id": "call_123456"}]},
    {"role": "user", "content": "max_tokens"},
    {"role": "user", "content": "100000"},
    {"role": "user", "content": "swordfish"},
]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("the last message is from the assistant", "the last message is from the assistant"),
        ("unexpected role 'narrator'", "unexpected role 'narrator'"),
        ("max_tokens='x' has 2000 tokens too many", "max_tokens='x' has 2000 tokens too many"),
        ("the limit is 100000, not (100000)", "the limit is 100000, not (100000)"),
        ("no result for 'call_123456'", "no result for 'call_123456'"),
        (f"cannot read '{SECRET}'", "cannot read '[…]'"),
        (f"cannot read{SECRET}here", "cannot read[…]here"),
        ("cannot read 'swordfish'", "cannot read '[…]'"),
        ("cannot read: swordfish", "cannot read: […]"),
        ('{"content":"swordfish"}', '{"content":"[…]"}'),
    ],
)
def test_an_error_hides_what_was_said_and_names_roles_fields_and_limits(said, shown):
    translated = translate(ValueError(said), {"messages": MESSAGES}, max_model_len=1024)

    assert shown in str(translated)
    assert SECRET not in str(translated)


@pytest.mark.parametrize("field", sorted({field for spec in ENDPOINTS.values() for field in spec.texts}))
def test_an_error_hides_what_was_said_in_any_field_that_an_endpoint_has_for_it(field):
    body = {field: [{"content": [{"type": "text", "text": SECRET}]}]}

    assert SECRET not in str(translate(ValueError(f"cannot read '{SECRET}'"), body, max_model_len=1024))
