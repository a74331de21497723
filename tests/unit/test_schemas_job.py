"""Jobs: their ids, what they refuse, and that they survive the journey as JSON."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from inferfleet.schemas import Failure, FailureCode, Job, JobState, Priority, Result
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.passages import Retrieve
from inferfleet.schemas.prices import Prices
from inferfleet.schemas.request import job_error
from inferfleet.schemas.run import RunLimits
from inferfleet.schemas.wire_model import WireModel

SECRET = "the patient in room 12"
WHEN = "must be a time with its time zone, such as 2026-01-31T12:00:00Z"


def test_job_ids_are_distinct_and_sort_by_the_time_they_were_made() -> None:
    ids: list[str] = []
    for _ in range(20):
        ids += [new_job_id() for _ in range(50)]
        time.sleep(0.001)  # the clock in a UUIDv7 counts milliseconds
    assert sorted(ids) == ids
    assert len(set(ids)) == len(ids)
    assert {uuid.UUID(one).version for one in ids} == {7}


def test_a_job_gets_an_id_a_time_and_the_usual_priority_by_itself() -> None:
    before = datetime.now(UTC)
    job = Job(body={"prompt": "hi"})
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert before <= job.submitted_at <= datetime.now(UTC)
    assert job.priority == Priority.NORMAL
    assert job.pool == "default"


def test_a_program_that_misspells_a_field_is_told_but_a_newer_client_may_have_more() -> None:
    misspelt: dict[type[WireModel], tuple[dict[str, Any], str]] = {
        Job: ({"body": {}, "max_atempts": 1}, "max_attempts"),
        Retrieve: ({"index": "docs", "min_scor": 1}, "min_score"),
        RunLimits: ({"max_csot": 1}, "max_cost"),
        Prices: ({"input": 1, "output": 1, "cached_inputs": 1}, "cached_input"),
    }
    for model, (fields, meant) in misspelt.items():
        with pytest.raises(
            TypeError, match=rf"{model.__name__} has no field '\w+' \(did you mean '{meant}'\?\)"
        ):
            model(**fields)
        for read in (model.model_validate(fields), model.model_validate_json(orjson.dumps(fields))):
            assert fields.keys() - read.model_fields_set == {min(fields.keys() - model.model_fields.keys())}
    whole = {
        "job_id": new_job_id(),
        "state": "failed",
        "error": {"code": "internal", "message": "m", "more": 1},
    }
    assert Result.model_validate(whole).error == Failure(code=FailureCode.INTERNAL, message="m")


def test_priorities_order_as_their_names_say() -> None:
    assert Priority.BATCH < Priority.NORMAL < Priority.HIGH < Priority.URGENT


def test_a_job_cannot_be_changed_after_it_was_made() -> None:
    job = Job(body={})
    with pytest.raises(ValidationError, match="frozen"):
        Job.__setattr__(job, "priority", 9)


def test_fields_of_a_newer_contract_are_ignored() -> None:
    job = Job.model_validate_json('{"body": {}, "colour": "red"}')
    assert "colour" not in job.model_dump()


def test_exactly_four_states_are_terminal() -> None:
    terminal = {state for state in JobState if state.terminal}
    assert terminal == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"pool": "My Pool"},
            "pool: 'My Pool' is not a pool name: 1 to 63 lower-case letters, digits, dots, underscores and "
            "dashes, with a letter or digit at both ends",
        ),
        ({"priority": 11}, "priority: 11 is above the maximum 9"),
        ({"priority": -1}, "priority: -1 is below the minimum 0"),
        ({"priority": "high"}, "priority: must be a whole number, not a string"),
        ({"priority": 1.5}, "priority: must be a whole number, not 1.5"),
        ({"id": "1"}, "id: '1' is not a UUID in lower case, such as 01890a5d-ac96-774b-bcce-b302099a8057"),
        (
            {"session_id": "a b"},
            "session_id: 'a b' is not a session id: 1 to 128 characters without spaces and braces",
        ),
        ({"timeout_s": 0}, "timeout_s: 0 is too low; it must be above 0"),
        ({"timeout_s": "9e9"}, "timeout_s: 9e9 is above the maximum 86400"),
        ({"timeout_s": float("nan")}, "timeout_s: nan is not a finite number"),
        (
            {"expires_at": "2026-01-01T00:00:00"},
            f"expires_at: {WHEN}",
        ),
        (
            {"expires_at": "tomorrow"},
            f"expires_at: {WHEN}",
        ),
        ({"max_attempts": 0}, "max_attempts: 0 is below the minimum 1"),
        ({"idempotency_key": ""}, "idempotency_key: is empty; at least 1 character is needed"),
        ({"tenant": "x" * 129}, "tenant: has 129 characters; at most 128 are allowed"),
        ({"metadata": {"k": 1}}, "metadata.k: must be a string, not a number"),
        (
            {"endpoint": "/v1/images"},
            "endpoint: '/v1/images' is not one of '/v1/chat/completions', '/v1/completions', "
            "'/v1/embeddings', '/v1/rerank' or '/v1/score'",
        ),
        ({"body": [1]}, "body: must be an object, not a list"),
    ],
    ids=str,
)
def test_what_a_job_itself_refuses_is_told_in_the_same_words(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({"body": {}, **fields})
    assert str(job_error(caught.value)) == words


def test_a_message_that_is_no_job_is_described_without_its_content() -> None:
    for body in (f"{SECRET}", f'["{SECRET}"]', f'{{"body": "{SECRET}"}}'):
        with pytest.raises(ValidationError) as caught:
            Job.model_validate_json(body)
        words = str(job_error(caught.value))
        assert words.startswith(("the job: ", "body: "))
        assert SECRET not in words


@pytest.mark.parametrize(
    "fields",
    [
        {"body": SECRET},
        {"body": {}, "metadata": SECRET},
        {"body": {}, "metadata": {"k": [SECRET]}},
        {"body": {}, "session_id": SECRET},
        {"body": {}, "priority": SECRET},
        {"body": {}, "submitted_at": SECRET},
    ],
    ids=str,
)
def test_a_validation_error_never_quotes_its_input(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(fields)
    assert SECRET not in str(caught.value)
