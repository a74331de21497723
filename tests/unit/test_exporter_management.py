"""Where the exporter asks RabbitMQ's HTTP API."""

from __future__ import annotations

import pytest

from inferfleet.producer.exporter.management import ManagementQueues


@pytest.mark.parametrize(
    ("management_url", "amqp_url", "asked"),
    [
        ("http://host:15672", "amqp://host/", "http://host:15672/api/queues/%2F"),
        ("http://host:15672/", "amqp://host/", "http://host:15672/api/queues/%2F"),
        ("http://host:15672/%2F", "amqp://host/", "http://host:15672/api/queues/%2F"),
        ("http://host:15672/fleet", "amqp://host/fleet", "http://host:15672/api/queues/fleet"),
        ("https://host/prefix", "amqp://host/fleet", "https://host/prefix/api/queues/fleet"),
    ],
)
def test_keda_and_the_exporter_share_one_url(management_url: str, amqp_url: str, asked: str) -> None:
    assert ManagementQueues(management_url, amqp_url=amqp_url)._url == asked
