"""The published contract: up to date, valid, and enough for a client in another language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from inferfleet.schemas import (
    Endpoint,
    Failure,
    FailureCode,
    Job,
    JobRecord,
    JobState,
    Result,
    Timings,
    Usage,
    names,
)
from inferfleet.schemas.asyncapi_messages import EXAMPLE_CLIENT
from inferfleet.schemas.control import CancelJob, DrainWorker, SwapModel
from inferfleet.schemas.documents import documents, drift, export
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import (
    FinishedEntry,
    QueuedEntry,
    RestartedEntry,
    RunningEntry,
    TokenChunk,
    TokensEntry,
)
from inferfleet.schemas.request import check_request
from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.schemas.wire_model import WireModel
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.rabbitmq.topology import queue_arguments

COMMITTED = Path(__file__).parents[2] / "schemas"
MADE: dict[str, Any] = {name: orjson.loads(text) for name, text in documents().items()}
ASYNCAPI: dict[str, Any] = MADE["asyncapi.json"]
JOB_MESSAGE: dict[str, Any] = ASYNCAPI["components"]["messages"]["job"]
SCHEMAS = sorted(name for name in MADE if name.endswith(".schema.json"))
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DEFAULTS = ServiceSettings(queue_type=QueueType.CLASSIC, queue_max_length=None)


def validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(MADE[schema], format_checker=FormatChecker())


def test_the_committed_documents_say_what_the_models_say() -> None:
    assert drift(COMMITTED) == [], "run `inferfleet schema export` and commit what it writes"


def test_drift_names_what_is_missing_and_what_differs(tmp_path: Path) -> None:
    written = export(tmp_path / "new")
    assert drift(tmp_path / "new") == []
    written[0].unlink()
    written[1].write_text("{}")
    assert drift(tmp_path / "new") == [written[0].name, written[1].name]


def test_the_same_models_give_the_same_bytes() -> None:
    assert documents() == documents()
    assert all(text.endswith("}\n") for text in documents().values())


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_schema_is_valid_and_has_a_name_of_its_own(name: str) -> None:
    Draft202012Validator.check_schema(MADE[name])
    assert MADE[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert MADE[name]["$id"] == f"urn:inferfleet:schema:{name}"


def test_every_schema_is_part_of_the_asyncapi_document() -> None:
    referred = {schema["$ref"].removeprefix("./") for schema in ASYNCAPI["components"]["schemas"].values()}
    assert referred == set(SCHEMAS)


WORD = st.text("abc-_.", min_size=1, max_size=20).map(lambda word: f"a{word}z")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
JOBS = st.builds(
    Job,
    pool=WORD,
    endpoint=st.sampled_from(Endpoint),
    body=st.dictionaries(TEXT, JSON, max_size=4),
    priority=st.integers(0, 9),
    session_id=st.none() | WORD,
    stream=st.booleans(),
    expires_at=st.none() | MOMENTS,
    timeout_s=st.none() | st.floats(0.001, 86_400),
    max_attempts=st.integers(1, 100),
    idempotency_key=st.none() | WORD,
    tenant=WORD,
    metadata=st.dictionaries(TEXT, TEXT, max_size=3),
    submitted_at=MOMENTS,
)


@given(job=JOBS)
def test_any_job_survives_the_journey_as_json_and_follows_its_schema(job: Job) -> None:
    message = job_message(job, reply_to="client").body
    assert Job.model_validate_json(message) == job
    validator("job.schema.json").validate(orjson.loads(message))
    validator("job.schema.json").validate(orjson.loads(job.model_dump_json()))


FAILURE = Failure(code=FailureCode.ENGINE_ERROR, message="the engine stopped")
RESULT = Result(
    job_id=new_job_id(),
    state=JobState.FAILED,
    error=FAILURE,
    usage=Usage(prompt_tokens=3),
    timings=Timings(queue_wait_s=0.1, generation_s=1.0, total_s=1.1),
    worker_id="w1",
    attempts=2,
)
SAID: list[tuple[str, WireModel]] = [
    ("result.schema.json", RESULT),
    ("result.schema.json", Result(job_id=new_job_id(), state=JobState.SUCCEEDED, response={"choices": []})),
    ("job-record.schema.json", JobRecord(id=new_job_id(), state=JobState.QUEUED, pool="p", priority=4)),
    (
        "job-record.schema.json",
        JobRecord(
            id=RESULT.job_id, state=JobState.FAILED, pool="p", priority=4, finished_at=NOW, result=RESULT
        ),
    ),
    ("journal-entry.schema.json", QueuedEntry(at=NOW)),
    ("journal-entry.schema.json", QueuedEntry(at=NOW, attempt=1, reason="retry", failure=FAILURE)),
    ("journal-entry.schema.json", RunningEntry(at=NOW, attempt=1, worker_id="w1", resumed_from=7)),
    (
        "journal-entry.schema.json",
        TokensEntry(at=NOW, attempt=1, offset=7, chunks=(TokenChunk(token_ids=(1, 2), text="hi"),)),
    ),
    ("journal-entry.schema.json", RestartedEntry(at=NOW, attempt=2, reason="not_resumable", tokens_wasted=9)),
    ("journal-entry.schema.json", QueuedEntry(at=NOW, attempt=2, republished=True)),
    ("journal-entry.schema.json", FinishedEntry(at=NOW, attempt=2, state=JobState.SUCCEEDED)),
    ("control.schema.json", CancelJob(job_id=new_job_id())),
    ("control.schema.json", DrainWorker(worker_id="w1")),
    ("control.schema.json", SwapModel(swap_id="s1", worker_id="w1", model="m")),
    (
        "heartbeat.schema.json",
        Heartbeat(
            worker_id="w1",
            pool="p",
            phase=WorkerPhase.READY,
            engine="simulated",
            model="m",
            version="0.1",
            started_at=NOW,
            seen_at=NOW + timedelta(seconds=2),
        ),
    ),
]


@pytest.mark.parametrize(("schema", "model"), SAID, ids=lambda value: type(value).__name__)
def test_what_the_fleet_writes_follows_its_schema(schema: str, model: WireModel) -> None:
    validator(schema).validate(orjson.loads(model.model_dump_json(exclude_none=True)))
    validator(schema).validate(orjson.loads(model.model_dump_json()))


SOME_ID = "01a214c4-e472-7375-a49b-b5fba0ebffd6"
"""Not drawn: it is in the names of tests, which every process that collects them must find the same."""


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("job.schema.json", {"body": {}}),
        ("job.schema.json", {"id": SOME_ID, "body": []}),
        ("job.schema.json", {"id": SOME_ID, "body": {}, "priority": 11}),
        ("job.schema.json", {"id": SOME_ID, "body": {}, "pool": "My Pool"}),
        ("control.schema.json", {"job_id": SOME_ID}),
        ("control.schema.json", {"kind": "explode"}),
        ("journal-entry.schema.json", {"kind": "tokens", "at": NOW.isoformat()}),
    ],
    ids=str,
)
def test_a_schema_refuses_what_no_worker_could_read(schema: str, message: dict[str, Any]) -> None:
    assert not validator(schema).is_valid(message)


BODY_SCHEMAS = {
    Endpoint.CHAT: "chat-completion-request.schema.json",
    Endpoint.COMPLETIONS: "completion-request.schema.json",
    Endpoint.EMBEDDINGS: "embedding-request.schema.json",
    Endpoint.RERANK: "rerank-request.schema.json",
    Endpoint.SCORE: "score-request.schema.json",
}
KEYS = st.sampled_from(
    [
        *("messages", "prompt", "input", "temperature", "n", "stop", "tools", "type", "role", "content"),
        *("query", "queries", "documents", "items", "top_n"),
    ]
)
BODIES = st.dictionaries(
    KEYS,
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["user", "text", "hi", ""]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_size=4,
)


@given(endpoint=st.sampled_from(Endpoint), body=BODIES)
@settings(deadline=None, max_examples=300)
def test_a_body_that_is_accepted_follows_its_published_schema(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    good = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
    body = good | {"query": "hi", "queries": "hi", "documents": ["hi"]} | body
    try:
        check_request(endpoint, body, max_body_bytes=10_000)
    except InvalidJobError:
        return
    validator(BODY_SCHEMAS[endpoint]).validate(body)


def test_a_client_that_follows_the_example_alone_is_understood() -> None:
    for example in JOB_MESSAGE["examples"]:
        job = Job.model_validate_json(orjson.dumps(example["payload"]))
        assert orjson.loads(job.model_dump_json(exclude_unset=True)) == example["payload"]
        assert check_request(job.endpoint, job.body, max_body_bytes=1024 * 1024) == example["payload"]["body"]
        validator("job.schema.json").validate(example["payload"])


def test_the_documented_properties_are_those_of_our_own_messages() -> None:
    documented = JOB_MESSAGE["x-amqp-properties"]
    job = Job.model_validate(JOB_MESSAGE["examples"][0]["payload"])
    properties = job_message(job, reply_to=EXAMPLE_CLIENT).properties
    sent = {
        "message_id": properties.message_id,
        "type": properties.message_type,
        "content_type": properties.content_type,
        "delivery_mode": properties.delivery_mode,
        "priority": properties.priority,
        "reply_to": properties.reply_to,
    }
    assert documented["examples"] == [sent]
    Draft202012Validator(documented).validate(sent)


def test_the_documented_queue_is_the_one_that_is_declared() -> None:
    binding = ASYNCAPI["channels"]["jobQueue"]["bindings"]["amqp"]
    assert binding["x-queue-arguments"] == queue_arguments(DEFAULTS, broker_version="4.3.6")
    assert binding["queue"]["name"] == names.job_queue("{pool}")


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    found = set(references(ASYNCAPI))
    assert len(found) > 20
    for reference in found:
        if reference.startswith("./"):
            assert reference.removeprefix("./") in MADE
            continue
        node = ASYNCAPI
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_every_channel_is_used_and_explains_its_parameters() -> None:
    used = {
        operation["channel"]["$ref"].removeprefix("#/channels/")
        for operation in ASYNCAPI["operations"].values()
    }
    assert used == set(ASYNCAPI["channels"])
    for channel in ASYNCAPI["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel.get("parameters", {}))


def test_the_redis_keys_in_the_document_are_the_real_ones() -> None:
    addresses = {name: channel["address"] for name, channel in ASYNCAPI["channels"].items()}
    assert addresses["journal"].format(jobTag="{j}") == names.journal_key("j")
    assert addresses["result"].format(jobTag="{j}") == names.result_key("j")
    assert addresses["replies"].format(clientTag="{c}") == names.reply_key("c")
