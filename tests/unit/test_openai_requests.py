"""What a request to OpenAI's endpoints asks for, and what its refusal looks like."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from typing import Any

import orjson
import pytest

from inferfleet.producer.openai.refusals import RefusedError, refusal_of
from inferfleet.producer.openai.requests import OPTIONS, TIERS, read_request
from inferfleet.schemas import Endpoint, FailureCode, Job, Priority, errors

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def read(
    body: dict[str, Any], headers: dict[str, str] | None = None, endpoint: Endpoint = Endpoint.CHAT
) -> Any:
    return read_request(endpoint, headers or {}, orjson.dumps(BODY | body))


@pytest.mark.parametrize(
    ("tier", "priority"),
    [("flex", Priority.BATCH), ("default", Priority.NORMAL), ("priority", Priority.HIGH)],
)
def test_a_service_tier_is_a_priority(tier: str, priority: Priority) -> None:
    asked = read({"service_tier": tier})

    assert asked.options["priority"] is priority
    assert "service_tier" not in asked.body


def test_an_unknown_service_tier_is_refused() -> None:
    with pytest.raises(RefusedError, match="'gold' is not one of auto, ") as refused:
        read({"service_tier": "gold"})

    assert refused.value.refusal.param == "service_tier"


def test_headers_set_options_and_override_the_body() -> None:
    headers = {
        "inferfleet-priority": "urgent",
        "inferfleet-pool": "chat",
        "inferfleet-session": "s1",
        "inferfleet-timeout": "2.5",
        "idempotency-key": "k1",
    }

    asked = read({"service_tier": "flex", "inferfleet": {"pool": "other", "max_attempts": 2}}, headers)

    assert asked.options == {
        "priority": "urgent",
        "pool": "chat",
        "session_id": "s1",
        "timeout_s": 2.5,
        "idempotency_key": "k1",
        "max_attempts": 2,
        "endpoint": Endpoint.CHAT,
        "stream": False,
    }
    assert asked.timeout_s == 2.5
    assert asked.named
    assert asked.body == BODY


def test_a_job_belongs_to_the_trace_of_its_request() -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    traced = read({}, {"traceparent": parent, "tracestate": "a=b"}).options

    assert (traced["traceparent"], traced["tracestate"]) == (parent, "a=b")
    assert not {"traceparent", "tracestate"} & read({}, {"traceparent": "junk"}).options.keys()


def test_a_misspelt_option_is_refused_with_what_may_be_meant() -> None:
    with pytest.raises(RefusedError, match=r"did you mean 'priority'\?"):
        read({"inferfleet": {"priorty": 3}})


@pytest.mark.parametrize("name", ["after", "delay_s", "not_before"])
@pytest.mark.parametrize("place", ["", "inferfleet."])
def test_a_request_that_waits_for_its_answer_does_not_start_later(place: str, name: str) -> None:
    asked = {"inferfleet": {name: 1}} if place else {name: 1}
    with pytest.raises(RefusedError, match=r"to start a job later, use POST /v1/jobs") as refused:
        read(asked)
    assert refused.value.refusal.param == f"{place}{name}"


def test_every_option_is_one_of_a_job_and_none_is_the_tenant() -> None:
    assert set(OPTIONS) <= Job.model_fields.keys() - {"tenant", "id", "submitted_at", "body"}
    assert set(TIERS) >= {"auto", "default", "flex", "priority"}


def test_the_tier_auto_asks_for_no_priority() -> None:
    assert "priority" not in read({"service_tier": "auto"}).options


@pytest.mark.parametrize(("endpoint", "streams"), [(Endpoint.CHAT, True), (Endpoint.EMBEDDINGS, False)])
def test_only_generated_answers_are_streamed(endpoint: Endpoint, streams: bool) -> None:
    assert read({"stream": True}, endpoint=endpoint).stream is streams


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(RefusedError, match="the body") as refused:
        read_request(Endpoint.CHAT, {}, content)

    assert refused.value.refusal.status is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (errors.InvalidJobError("body.temperature: 9 is above the maximum 2"), 400, "invalid_request", False),
        (errors.IdempotencyConflictError("-"), 409, "idempotency_conflict", False),
        (errors.UnknownPoolError("-"), 404, "pool_not_found", False),
        (errors.QueueFullError("-"), 429, "queue_full", True),
        (errors.SessionBusyError("-"), 409, "session_busy", False),
        (errors.PublishUnconfirmedError("-"), 503, "publish_unconfirmed", False),
        (errors.ServiceUnreachableError("-"), 503, "service_unreachable", True),
        (errors.ServiceRefusedError("-"), 503, "service_refused", True),
        (errors.JobNotFoundError("1"), 404, "job_not_found", False),
        (errors.JobDataLostError("1", missing="result"), 410, "job_data_lost", False),
        (errors.WaitTimeoutError("-"), 504, "timeout", False),
        (errors.InferfleetError("-"), 500, "internal", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_a_status_and_a_code(
    error: errors.InferfleetError, status: int, code: str, retry: bool
) -> None:
    refusal = refusal_of(error)

    assert (refusal.status, refusal.code) == (status, code)
    assert refusal.headers()["x-should-retry"] == str(retry).lower()
    assert ("retry-after" in refusal.headers()) is retry


def test_a_refusal_names_the_parameter() -> None:
    error = refusal_of(errors.InvalidJobError("body.stop[1]: is too long\nbody.n: is odd")).error()

    assert error["param"] == "stop[1]"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("code", FailureCode)
def test_a_failed_job_is_not_run_again_by_the_sdk(code: FailureCode) -> None:
    failed = errors.JobFailedError(job_id="1", state="failed", code=code, message="-")

    refusal = refusal_of(failed)

    assert refusal.headers()["x-should-retry"] == "false"
    assert refusal.headers()["inferfleet-job"] == "1"
    expected = {
        FailureCode.INVALID_REQUEST: 400,
        FailureCode.PROMPT_TOO_LONG: 400,
        FailureCode.MODEL_UNAVAILABLE: 503,
        FailureCode.TIMEOUT: 504,
        FailureCode.EXPIRED: 504,
        FailureCode.CANCELLED: 409,
        FailureCode.SESSION_CONFLICT: 409,
    }
    assert refusal.status == expected.get(code, 500)


def test_every_error_that_a_request_can_cause_has_its_own_status() -> None:
    """Those that are left mean that something is wrong here."""
    every = {
        each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__
    }

    from inferfleet.producer.openai.refusals import _REFUSALS

    assert {each.__name__ for each in every - _REFUSALS.keys()} == {
        "AnswerRestartedError",
        "BatchError",
        "BatchOutputError",
        "ClientUnusableError",
        "ConfigurationError",
        "DeadLetterNotFoundError",
        "DeadLettersBusyError",
        "DeadLettersGoneError",
        "InferfleetError",
        "InvalidJobError",
        "JobFailedError",
        "PartialReplayError",
        "PartialSubmitError",
        "RolloutError",
        "UnknownWorkerError",
    }
