"""Where RabbitMQ's HTTP API is asked, and with which certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.wire.rabbitmq.management import ManagementApi, queues_url, tls_parameters
from inferfleet.wire.rabbitmq.management_answers import QueueAnswer

AMQPS = "amqps://host/?cafile=/ca.crt&certfile=/tls.crt&keyfile=/tls.key&heartbeat=30"


@pytest.mark.parametrize(
    ("management_url", "amqp_url", "asked"),
    [
        ("http://host:15672", "amqp://host/", "http://host:15672/api/queues/%2F"),
        ("http://host:15672", "amqp://host", "http://host:15672/api/queues/%2F"),
        ("http://host:15672/", "amqp://host/", "http://host:15672/api/queues/%2F"),
        ("http://host:15672/%2F", "amqp://host/", "http://host:15672/api/queues/%2F"),
        ("http://host:15672/fleet", "amqp://host/fleet", "http://host:15672/api/queues/fleet"),
        ("https://host/prefix", "amqp://host/fleet", "https://host/prefix/api/queues/fleet"),
        ("https://host/?cafile=/ca.crt", "amqp://host/", "https://host/api/queues/%2F"),
        ("https://user:p%2Fw@host/", "amqp://host/", "https://user:p%2Fw@host/api/queues/%2F"),
    ],
)
def test_keda_and_the_exporter_share_one_url(management_url: str, amqp_url: str, asked: str) -> None:
    assert queues_url(management_url, amqp_url=amqp_url) == asked


@pytest.mark.parametrize(
    ("url", "amqp_url", "used"),
    [
        ("http://host/", AMQPS, None),
        ("https://host/", "amqp://host/", {}),
        ("https://host/", AMQPS, {"cafile": "/ca.crt", "certfile": "/tls.crt", "keyfile": "/tls.key"}),
        ("https://host/?cafile=/other.crt", AMQPS, {"cafile": "/other.crt"}),
    ],
)
def test_a_url_without_certificates_uses_those_of_the_amqp_url(
    url: str, amqp_url: str, used: dict[str, str] | None
) -> None:
    assert tls_parameters(url, amqp_url=amqp_url) == used


def test_a_parameter_that_means_nothing_is_refused_and_the_right_ones_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"parameter ssl_ca_certs; there are cafile"):
        tls_parameters("https://host/?ssl_ca_certs=/ca.crt", amqp_url="amqp://host/")


@pytest.mark.parametrize("url", ["amqp://user:secret@host/", "http://user:sec/ret@host/", "http:///", ""])
def test_what_cannot_be_an_address_is_refused_without_repeating_it(url: str, tmp_path: Path) -> None:
    file = tmp_path / "management-url"
    file.write_text(url)

    with pytest.raises(ConfigurationError, match=r"INFERFLEET_MANAGEMENT_URL|management-url") as caught:
        ManagementApi(file.as_uri(), amqp_url="amqp://host/", timeout_s=1).check()
    assert "sec" not in str(caught.value).replace(str(tmp_path), "")


async def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.crt"
    api = ManagementApi(f"https://host/?cafile={missing}", amqp_url="amqp://host/", timeout_s=1)

    with pytest.raises(ConfigurationError, match=f"cafile={missing}"):
        await api.queue("inferfleet.jobs.default")


def test_an_empty_list_in_the_place_of_an_object_is_an_object_without_members() -> None:
    """Erlang has one word for both, and RabbitMQ writes it as a list."""
    queue = QueueAnswer.model_validate_json(
        '{"name": "q", "arguments": [], "effective_policy_definition": [], "message_stats": []}'
    )
    assert queue == QueueAnswer(name="q")
