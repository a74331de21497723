"""Sentences about invalid values: each names the place, quotes what it may, and says what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from inferfleet.agents.settings import RunnerSettings
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.api_keys import KeysDocument
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.schemas.errors import ConfigurationError, RetrievalError
from inferfleet.schemas.job import Job
from inferfleet.schemas.problems import describe
from inferfleet.schemas.retrieval import check_where
from inferfleet.schemas.run import RunLimits, RunOrder
from inferfleet.schemas.settings import WorkerSettings, read_settings

HEX = "0f" * 32


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (WorkerSettings, GatewaySettings, ExporterSettings, RunnerSettings):
        for field in settings.model_fields:
            monkeypatch.delenv(f"INFERFLEET_{field.upper()}", raising=False)


def refusals(
    monkeypatch: pytest.MonkeyPatch, settings: type[BaseSettings], value: str
) -> Iterator[tuple[str, str]]:
    for field in settings.model_fields:
        variable = f"INFERFLEET_{field.upper()}"
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            try:
                read_settings(settings)
            except ConfigurationError as error:
                yield variable, str(error)


@pytest.mark.parametrize("settings", [WorkerSettings, GatewaySettings, ExporterSettings, RunnerSettings])
@pytest.mark.parametrize("value", ["N x", "-7", '["a b"]', '{"a": "B c"}'])
def test_every_setting_that_refuses_a_value_names_its_variable_and_says_in_our_words_why(
    monkeypatch: pytest.MonkeyPatch, settings: type[BaseSettings], value: str
) -> None:
    found = list(refusals(monkeypatch, settings, value))
    assert found
    for variable, message in found:
        assert message.startswith((f"invalid setting: {variable}: ", f"invalid setting: {variable}[")), (
            message
        )
        for words in ("Input ", "String should", "Value error", "lax-or-strict", "does not match"):
            assert words not in message


@pytest.mark.parametrize(
    ("settings", "variable", "value", "message"),
    [
        (WorkerSettings, "WARM_WAIT_S", "5s", "must be a number, not '5s'"),
        (WorkerSettings, "FAIR_SHARES", "maybe", "must be true or false, not 'maybe'"),
        (WorkerSettings, "LEASE_S", "0.5", "0.5 is below the minimum 1"),
        (WorkerSettings, "POOL", "Größe", "'Größe' is not a pool name: 1 to 63 lower-case letters"),
        (GatewaySettings, "WEBHOOK_NETWORKS", '["10.1.2.3/16"]', "'10.1.2.3/16' is not a network, such as"),
        (RunnerSettings, "AGENT_QUEUE", "a b", "'a b' is not a queue name: 1 to 63 lower-case letters"),
    ],
)
def test_a_refused_setting_quotes_its_value(
    monkeypatch: pytest.MonkeyPatch, settings: type[BaseSettings], variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"INFERFLEET_{variable}", value)
    with pytest.raises(ConfigurationError) as refused:
        read_settings(settings)
    assert message in str(refused.value)


def test_a_list_of_invalid_items_is_not_said_to_be_too_short() -> None:
    with pytest.raises(ValidationError) as refused:
        Job.model_validate({"body": {}, "after": ["j-1"]})
    problems = [line for line in describe(refused.value).splitlines() if line.startswith("after")]
    assert problems == [
        "after[0]: 'j-1' is not a UUID in lower case, such as 01890a5d-ac96-774b-bcce-b302099a8057"
    ]
    with pytest.raises(ValidationError) as refused:
        Job.model_validate({"body": {}, "after": []})
    assert "after: is empty; at least 1 item is needed" in describe(refused.value).splitlines()


def test_a_file_of_keys_says_what_an_id_looks_like_and_quotes_no_secret() -> None:
    key = {"tenant": "a", "created_at": "2026-01-01T00:00:00Z"}
    secrets = [{"sha256": HEX}, {"sha256": "if-0123456789ab-a-pasted-key"}]
    document = {"keys": [{**key, "id": "zz", "secrets": secrets, "pools": ["a b"]}]}
    with pytest.raises(ValidationError) as refused:
        KeysDocument.model_validate(document)
    assert describe(refused.value).splitlines() == [
        "keys[0].id: 'zz' is not a key's id: 12 hexadecimal digits in lower case",
        "keys[0].secrets[1].sha256: must be a SHA-256: 64 hexadecimal digits in lower case",
        "keys[0].pools[0]: 'a b' is not a pool name: 1 to 63 lower-case letters, digits, dots, underscores "
        "and dashes, with a letter or digit at both ends",
    ]


def test_a_contradiction_at_the_top_is_named_without_a_leading_dot() -> None:
    with pytest.raises(ValidationError) as refused:
        RunOrder.model_validate(
            {
                "id": "01890a5d-ac96-774b-bcce-b302099a8057",
                "agent": "buyer",
                "input": "x",
                "created_ms": 1,
                "limits": {"prices": {"input": "0.1", "output": "0.4"}},
            }
        )
    assert describe(refused.value) == "limits.prices: are given without a limit: give max_cost as well"


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"year": {"gt": "a"}}, "where.year.gt: must be a number, not a string"),
        (
            {"year": {"gte": 1, "ge": 2}},
            "where.year.ge: is not a member (did you mean 'gte'?); there are gt, gte, lt, lte",
        ),
        ({"year": {"gt": None}}, "where.year: give a number for at least one of gt, gte, lt and lte"),
        ({"year": "x" * 600}, "where.year: has 600 characters; at most 512 are allowed"),
        ({"year": [None]}, "where.year[0]: must be true or false, a number or a string, not null"),
    ],
)
def test_a_value_that_may_be_of_several_types_gets_one_sentence(where: dict[str, Any], told: str) -> None:
    with pytest.raises(RetrievalError) as refused:
        check_where(where)
    assert str(refused.value) == told


def test_a_number_of_a_hundred_digits_is_quoted_in_short() -> None:
    with pytest.raises(ValidationError) as refused:
        Job.model_validate({"body": {}, "timeout_s": 1e99})
    assert "timeout_s: 1e+99 is above the maximum 86400" in describe(refused.value).splitlines()


def test_text_for_a_number_is_quoted_only_where_it_can_be_no_prompt() -> None:
    with pytest.raises(ValidationError) as refused:
        RunLimits.model_validate({"max_cost": "0,05"})
    assert describe(refused.value) == "max_cost: must be a number, not a string"
    assert describe(refused.value, quoting=True) == "max_cost: must be a number, not '0,05'"
