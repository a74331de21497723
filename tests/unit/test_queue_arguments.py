"""What a pool's queue is declared with, by the version that the broker says to have."""

from __future__ import annotations

import pytest

from inferfleet.schemas.settings import QueueType, ServiceSettings
from inferfleet.wire.rabbitmq.topology import queue_arguments


@pytest.mark.parametrize("version", ["3.8.0", "3.10.8", "3.13.7+1.gdeadbee", "", "unknown"])
def test_a_quorum_queue_has_no_delivery_limit_where_minus_one_would_drop_at_the_first_return(
    version: str,
) -> None:
    settings = ServiceSettings(queue_type=QueueType.QUORUM)
    assert queue_arguments(settings, broker_version=version) == {"x-queue-type": "quorum"}


@pytest.mark.parametrize("version", ["4.0.0-rc.1", "4.0.5", "4.2.1", "4.3.6", "10.0"])
def test_a_quorum_queue_has_no_limit_either_where_twenty_returns_are_the_default(version: str) -> None:
    settings = ServiceSettings(queue_type=QueueType.QUORUM)
    assert queue_arguments(settings, broker_version=version) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": -1,
    }


@pytest.mark.parametrize("version", ["3.10.8", "4.3.6", ""])
def test_a_classic_queue_is_the_same_everywhere(version: str) -> None:
    settings = ServiceSettings(queue_type=QueueType.CLASSIC, queue_max_length=7)
    assert queue_arguments(settings, broker_version=version) == {
        "x-queue-type": "classic",
        "x-max-priority": 10,
        "x-max-length": 7,
        "x-overflow": "reject-publish",
    }
