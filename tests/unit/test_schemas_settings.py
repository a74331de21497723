"""Settings: from which variables they come, what they refuse, and what they keep to themselves."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from inferfleet.exporter.settings import ExporterSettings
from inferfleet.schemas.limits import LONGEST_S, MOST
from inferfleet.schemas.settings import (
    ProducerSettings,
    QueueType,
    ServiceSettings,
    WorkerSettings,
)

CLASSES = [ServiceSettings, ProducerSettings, WorkerSettings]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in CLASSES:
        for field in settings.model_fields:
            monkeypatch.delenv(f"INFERFLEET_{field.upper()}", raising=False)


def test_without_variables_a_fleet_on_this_machine_is_meant() -> None:
    settings = ServiceSettings()
    assert settings.amqp_url == "amqp://guest:guest@127.0.0.1:5672/"
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.queue_type is QueueType.CLASSIC
    assert settings.queue_max_length is None
    assert ProducerSettings().max_body_bytes == 1024 * 1024


@pytest.mark.parametrize("settings", CLASSES)
def test_a_program_that_misspells_a_setting_is_told(settings: type[ServiceSettings]) -> None:
    with pytest.raises(ValidationError, match="redis_ulr"):
        settings.model_validate({"redis_ulr": "redis://redis:6379/0"})
    misspelt: dict[str, Any] = {"redis_ulr": "redis://redis:6379/0"}
    with pytest.raises(ValidationError, match="redis_ulr"):
        settings(**misspelt)


def test_every_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_AMQP_URL", "amqps://u:p@rabbit/prod")
    monkeypatch.setenv("INFERFLEET_REDIS_URL", "rediss://:p@redis:6380/1")
    monkeypatch.setenv("INFERFLEET_POOL", "chat")
    monkeypatch.setenv("INFERFLEET_ENGINE", "simulated")
    monkeypatch.setenv("INFERFLEET_ENGINE_ARGS", '{"max_model_len": 512}')
    monkeypatch.setenv("INFERFLEET_DRAIN_TIMEOUT_S", "2.5")
    monkeypatch.setenv("INFERFLEET_QUEUE_TYPE", "quorum")
    settings = WorkerSettings()
    assert settings.amqp_url == "amqps://u:p@rabbit/prod"
    assert settings.redis_url == "rediss://:p@redis:6380/1"
    assert settings.pool == "chat"
    assert settings.engine == "simulated"
    assert settings.engine_args == {"max_model_len": 512}
    assert settings.drain_timeout_s == 2.5
    assert settings.queue_type is QueueType.QUORUM


def test_turns_wait_for_their_workers_only_if_they_can_be_published_again() -> None:
    assert WorkerSettings(warm_wait_s=2.5).warm_wait_s == 2.5
    assert WorkerSettings(keep_requests=False).warm_wait_s == 0
    with pytest.raises(ValidationError, match=r"2\.5 needs INFERFLEET_KEEP_REQUESTS"):
        WorkerSettings(warm_wait_s=2.5, keep_requests=False)


def test_an_argument_overrides_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLEET_POOL", "chat")
    assert WorkerSettings(pool="code").pool == "code"


@pytest.mark.parametrize(
    ("field", "url", "words"),
    [
        ("amqp_url", "http://rabbit", "'http' is not one of amqp, amqps, file; write it as amqp://"),
        ("amqp_url", "rabbit:5672", "'rabbit' is not one of amqp, amqps"),
        ("redis_url", "amqp://redis", "'amqp' is not one of redis, rediss, unix, file, redis+sentinel"),
        ("redis_url", "", "'' is not one of redis, rediss, unix"),
    ],
)
def test_a_url_of_the_wrong_kind_is_refused_with_an_example(field: str, url: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServiceSettings.model_validate({field: url})
    assert words in str(caught.value)


def test_blanks_around_a_url_do_not_count_as_they_do_not_in_a_file() -> None:
    settings = ServiceSettings(amqp_url=" amqp://host/v \n", redis_url="redis://host/1 \r\n")
    assert (settings.amqp_url, settings.redis_url) == ("amqp://host/v", "redis://host/1")
    exporter = ExporterSettings(management_url=" http://host:15672/ ")
    assert exporter.management_url == "http://host:15672/"


@pytest.mark.parametrize("settings", CLASSES)
def test_passwords_are_in_no_repr_and_no_error(settings: type[ServiceSettings]) -> None:
    urls = {"amqp_url": "amqp://u:hunter2@rabbit/", "redis_url": "redis://:hunter2@redis/0"}
    assert "hunter2" not in repr(settings.model_validate(urls))
    assert "hunter2" not in str(settings.model_validate(urls))
    with pytest.raises(ValidationError) as caught:
        settings.model_validate({**urls, "amqp_url": "http://u:hunter2@rabbit/"})
    assert "hunter2" not in str(caught.value)


def test_every_client_and_every_worker_gets_a_name_of_its_own() -> None:
    assert ProducerSettings().client_id != ProducerSettings().client_id
    assert WorkerSettings().worker_id != WorkerSettings().worker_id


def test_a_pool_that_is_no_name_is_refused() -> None:
    with pytest.raises(ValidationError):
        WorkerSettings(pool="My Pool")


@pytest.mark.parametrize("settings", CLASSES)
def test_a_time_that_a_service_or_a_timer_cannot_count_is_refused_before_it_comes_to_that(
    settings: type[ServiceSettings],
) -> None:
    times = [name for name in settings.model_fields if name.endswith("_s")]
    assert times
    for name in times:
        for value in (10**16, float("inf"), float("nan")):
            with pytest.raises(ValidationError, match=name):
                settings.model_validate({name: value})
        settings.model_validate({name: LONGEST_S})


def test_a_number_that_a_script_cannot_count_to_is_refused() -> None:
    for name in ("queue_max_length", "max_session_bytes", "max_body_bytes"):
        with pytest.raises(ValidationError, match=name):
            ProducerSettings.model_validate({name: MOST + 1})
        ProducerSettings.model_validate({name: MOST})
