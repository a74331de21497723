"""Names that nobody reads: variables, members of requests, arguments of engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from pydantic_settings import BaseSettings

from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.job_making import JobOptions, make_job
from inferfleet.schemas import request_members, settings
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.near_match import near_match
from inferfleet.schemas.settings import (
    ProducerSettings,
    WorkerSettings,
    misspelt_variables,
    read_settings,
)
from inferfleet.worker.engines.vllm.engine import VllmEngine


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    """As in a fresh process."""
    settings._warn.cache_clear()
    request_members._warn.cache_clear()


def classes(of: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    yield of
    for each in of.__subclasses__():
        yield from classes(each)


def test_no_process_minds_the_settings_of_another() -> None:
    ours = [each for each in classes(BaseSettings) if each.__module__.startswith("inferfleet.")]
    assert {WorkerSettings, ProducerSettings, ExporterSettings, GatewaySettings} <= set(ours)
    names = {f"INFERFLEET_{name.upper()}" for each in ours for name in each.model_fields}
    assert list(misspelt_variables(dict.fromkeys(names, ""))) == []
    assert list(misspelt_variables(dict.fromkeys(map(str.lower, names), ""))) == []


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("INFERFLEET_MAX_RUNING", "INFERFLEET_MAX_RUNNING"),
        ("inferfleet_max_runing", "INFERFLEET_MAX_RUNNING"),
        ("INFERFLEET_MAXRUNNING", "INFERFLEET_MAX_RUNNING"),
        ("INFERFLEET_DRAIN_TIMEOUT", "INFERFLEET_DRAIN_TIMEOUT_S"),
        ("INFERFLEET_HTP_PORT", "INFERFLEET_HTTP_PORT"),
        ("INFERFLEET_AMPQ_URL", "INFERFLEET_AMQP_URL"),
        ("INFERFLEET_MANAGMENT_URL", "INFERFLEET_MANAGEMENT_URL"),
        ("INFERFLET_MAX_RUNNING", "INFERFLEET_MAX_RUNNING"),
        ("INFER_FLEET_REDIS_URL", "INFERFLEET_REDIS_URL"),
    ],
)
def test_a_misspelt_variable_is_told_with_what_may_be_meant(variable: str, meant: str) -> None:
    assert list(misspelt_variables({variable: "secret"})) == [
        f"{variable} is no setting (did you mean {meant}?): it has no effect"
    ]


def test_a_variable_that_is_like_no_other_is_told_too() -> None:
    assert list(misspelt_variables({"INFERFLEET_COLOUR": "red"})) == [
        "INFERFLEET_COLOUR is no setting: it has no effect"
    ]


def test_what_others_put_into_the_environment_is_none_of_our_settings() -> None:
    of_services = [
        f"INFERFLEET_EXPORTER_{end}"
        for end in (
            *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_9101_TCP"),
            *("PORT_9101_TCP_ADDR", "PORT_9101_TCP_PORT", "PORT_9101_TCP_PROTO"),
        )
    ]
    others = ["PATH", "INFERENCE_MODEL", "INFRA_REDIS_URL", "REDIS_URL", "VLLM_MODEL"]
    assert list(misspelt_variables(dict.fromkeys([*of_services, *others], ""))) == []


def test_a_misspelt_variable_is_logged_once_by_whoever_reads_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INFERFLEET_MAX_RUNING", "3")
    for _ in range(2):
        read_settings(ProducerSettings)
        read_settings(WorkerSettings)
    assert caplog.messages == [
        "INFERFLEET_MAX_RUNING is no setting (did you mean INFERFLEET_MAX_RUNNING?): it has no effect"
    ]


def submit(**members: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], **members}
    make_job(body, {}, max_body_bytes=10**7)


@pytest.mark.parametrize(
    ("member", "meant"),
    [
        ("temprature", "temperature"),
        ("Temperature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("max_token", "max_tokens"),
        ("topp", "top_p"),
        ("repetiton_penalty", "repetition_penalty"),
        ("tool", "tools"),
        ("stops", "stop"),
        ("respose_format", "response_format"),
        ("ignore_eso", "ignore_eos"),
    ],
)
def test_a_misspelt_member_of_a_request_is_logged_once_and_passed_on(
    caplog: pytest.LogCaptureFixture, member: str, meant: str
) -> None:
    for _ in range(3):
        submit(**{member: 1})
    assert caplog.messages == [
        f"body.{member} is not a known request field (did you mean {meant!r}?); passing it on unchanged"
    ]


def members(schema: dict[str, Any]) -> set[str]:
    """The members of the object, whichever of its forms it has."""
    forms = [form for key in ("anyOf", "oneOf") for form in schema.get(key, ())]
    definitions = schema.get("$defs", {})
    forms = [definitions[form["$ref"].rpartition("/")[2]] if "$ref" in form else form for form in forms]
    return {name for form in (schema, *forms) for name in form.get("properties", ())}


def test_what_the_engine_may_know_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    known = {name for spec in ENDPOINTS.values() for name in members(spec.request.json_schema())}
    assert "temperature" in known
    assert "input" in known
    assert known <= request_members.KNOWN_MEMBERS
    for member in ("xyzzy", "quantum_flux", "vendor_option", "steering_vectors", "x" * 100_000):
        submit(**{member: 1})
    assert caplog.messages == []


def test_a_body_of_many_unknown_members_is_looked_at_quickly() -> None:
    members = {f"temperature_{number}": 1 for number in range(20_000)}
    before = time.process_time()
    request_members.warn_of_misspelt_members(members)
    assert time.process_time() - before < 1


def test_a_misspelt_option_of_a_job_is_told_with_what_may_be_meant() -> None:
    with pytest.raises(TypeError, match=r"no option 'priorty' \(did you mean 'priority'\?\)"):
        make_job("hello", cast("JobOptions", {"priorty": 9}), max_body_bytes=10**6)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("max_num_seqs", 8, "max_num_seqs is 8 and should be 3: that is --max-running"),
        ("model", "other", "model is 'other' and should be 'mine': that is --model"),
        ("scheduling_policy", "fcfs", "scheduling_policy is 'fcfs' and should be 'priority'"),
        ("disable_log_stats", True, "disable_log_stats is True and should be False"),
    ],
)
def test_an_engine_argument_does_not_beat_a_setting(argument: str, value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VllmEngine(model="mine", max_running=3, engine_args={argument: value})


def test_an_engine_argument_that_says_the_same_is_none_that_contradicts() -> None:
    agreeing = {"max_num_seqs": 3, "model": "mine", "scheduling_policy": "priority"}
    try:
        VllmEngine(model="mine", max_running=3, engine_args=agreeing)
    except ConfigurationError as error:
        assert "needs the package" in str(error)  # noqa: PT017 - only where there is no vLLM


def test_what_is_far_from_everything_is_near_to_nothing() -> None:
    assert near_match("zzz", ["alpha", "beta"]) is None
    assert near_match("", ["alpha"]) is None
