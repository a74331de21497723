"""What RabbitMQ's HTTP API says about queues, as far as anybody here reads it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from inferfleet.schemas.wire_model import WireModel


def _no_list(value: Any) -> Any:
    """Return an object for the empty list that RabbitMQ sends in place of an object without members."""
    return {} if value in ([], None) else value


Members = Annotated[dict[str, Any], BeforeValidator(_no_list)]


class Rate(WireModel):
    """How a counter changes, per second."""

    rate: float = 0.0


class MessageStats(WireModel):
    """Counters of a queue since the broker's statistics began; ``None`` before its first such event."""

    publish: int | None = None
    ack: int | None = None
    publish_details: Rate = Rate()
    deliver_get_details: Rate = Rate()


class QueueAnswer(WireModel):
    """One queue. A queue without statistics has no counts yet."""

    name: str
    messages: int | None = None
    messages_ready: int | None = None
    messages_unacknowledged: int | None = None
    message_stats: Annotated[MessageStats, BeforeValidator(_no_list)] = MessageStats()
    policy: str | None = None
    effective_policy_definition: Members = Field(default_factory=dict)
    arguments: Members = Field(default_factory=dict)


class QueuesAnswer(WireModel):
    """A page of queues."""

    items: tuple[QueueAnswer, ...]
    page_count: int
