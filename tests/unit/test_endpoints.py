"""The table of endpoints: an entry for each, and every field of an entry does something."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from inferfleet.producer.job_making import make_job
from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.documents import MODELS
from inferfleet.schemas.endpoints import ENDPOINTS, EndpointSpec, not_answered, text_of_response
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.schemas.request_members import KNOWN_MEMBERS
from inferfleet.schemas.said import cut_response
from inferfleet.worker.engines.simulated import SimulatedEngine, expected_response
from inferfleet.worker.engines.simulated.request import resumable as resumable_by_simulated
from inferfleet.worker.engines.vllm.resumable import resumable as resumable_by_vllm

each_endpoint = pytest.mark.parametrize(("endpoint", "spec"), ENDPOINTS.items())


def make(work: Any, endpoint: str, **options: Any) -> Job:
    chosen: Any = {"endpoint": endpoint, **options}
    return make_job(work, chosen, max_body_bytes=10_000)


def test_each_endpoint_has_an_entry_and_the_simulated_engine_answers_it() -> None:
    assert list(ENDPOINTS) == list(Endpoint)
    assert SimulatedEngine(model="m", max_running=1, engine_args={}).endpoints == ENDPOINTS.keys()
    for endpoint, spec in ENDPOINTS.items():
        assert make(spec.example, endpoint).body == spec.example
        response = expected_response(endpoint, spec.example, job_id="0190", model="m", created=1)
        assert response["usage"]["prompt_tokens"] > 0


@each_endpoint
def test_the_published_schema_has_the_fields_of_the_entry(endpoint: Endpoint, spec: EndpointSpec) -> None:
    assert MODELS[spec.schema] is spec.request
    schema = spec.request.json_schema()
    variants = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in schema.get("oneOf", ())]
    assert {name for variant in variants or [schema] for name in variant["properties"]} == spec.fields
    assert spec.fields >= set(spec.texts) | spec.example.keys()
    assert spec.fields <= KNOWN_MEMBERS


@each_endpoint
def test_a_prompt_alone_is_a_request_or_the_error_says_what_it_lacks(
    endpoint: Endpoint, spec: EndpointSpec
) -> None:
    if endpoint in {Endpoint.RERANK, Endpoint.SCORE}:
        with pytest.raises(InvalidJobError, match=f"{endpoint} needs more than a prompt"):
            make("hello", endpoint)
    else:
        assert make("hello", endpoint).body == spec.example


@each_endpoint
def test_only_a_generated_answer_can_be_continued_and_cut_short(
    endpoint: Endpoint, spec: EndpointSpec
) -> None:
    generated = spec.generated is not None
    assert resumable_by_vllm(endpoint, spec.example) is generated
    assert resumable_by_simulated(endpoint, spec.example) is generated
    response = expected_response(endpoint, spec.example, job_id="0190", model="m", created=1)
    if spec.generated is None:
        assert text_of_response(response) == ""
        return
    text = spec.generated.text(response["choices"][0])
    assert text == text_of_response(response) != ""
    head = AnswerHead(endpoint=endpoint, model="m", prompt_tokens=1)
    cut = cut_response("0190", head, [TokenChunk(token_ids=(1,), text=text)], created=1)
    assert (cut["id"], cut["object"]) == (response["id"], response["object"])
    assert text_of_response(cut) == text


@each_endpoint
def test_sessions_have_turns_of_some_endpoints(endpoint: Endpoint, spec: EndpointSpec) -> None:
    if spec.sessions:
        assert make(spec.example, endpoint, session_id="s").session_id == "s"
    else:
        with pytest.raises(InvalidJobError, match=f"/v1/chat/completions has sessions, not {endpoint}"):
            make(spec.example, endpoint, session_id="s")


@pytest.mark.parametrize("path", [path for spec in ENDPOINTS.values() for path in spec.other_paths])
def test_vllms_other_paths_lead_to_the_same_endpoint(path: str) -> None:
    ((endpoint, spec),) = [each for each in ENDPOINTS.items() if path in each[1].other_paths]
    assert make(spec.example, path).endpoint is endpoint
    message = orjson.dumps({"endpoint": path, "body": spec.example})
    assert Job.model_validate_json(message).endpoint is endpoint


@each_endpoint
def test_a_worker_without_it_says_what_model_it_needs(endpoint: Endpoint, spec: EndpointSpec) -> None:
    words = not_answered(endpoint, model="tiny", answers={Endpoint.SCORE, Endpoint.CHAT})
    assert words == (
        f"endpoint: {endpoint} needs {spec.model}, and the model 'tiny' answers only "
        "/v1/chat/completions, /v1/score; submit the job to a pool whose workers serve such a model"
    )
