"""What becomes of a message that died in a queue: the same message, with its death on record.

The ``x-death`` header is RabbitMQ's: a list with one table for each queue and reason, the latest first,
counting how often.
"""

from __future__ import annotations

import copy
from datetime import datetime
from typing import TYPE_CHECKING, cast

from inferfleet.local.embedded.queues import DeathReason, Message, Queue

if TYPE_CHECKING:
    from pamqp.common import FieldTable, FieldValue

DEATHS = "x-death"


def dead_letter(
    message: Message, *, queue: Queue, reason: DeathReason, exchange: str, now: datetime
) -> Message:
    """Make the message that goes to the dead-letter exchange.

    It keeps everything but its ``expiration``: with that it would die again in the next queue.
    """
    properties = copy.copy(message.properties)
    headers: FieldTable = dict(properties.headers or {})
    earlier = _deaths(message)
    count = 1
    for death in earlier:
        if death.get("queue") == queue.name and death.get("reason") == reason.value:
            count += cast("int", death.get("count", 0))
    latest: FieldTable = {
        "count": count,
        "reason": reason.value,
        "queue": queue.name,
        "time": now,
        "exchange": message.exchange,
        "routing-keys": [message.routing_key],
    }
    if properties.expiration:
        latest["original-expiration"] = properties.expiration
    others = [d for d in earlier if (d.get("queue"), d.get("reason")) != (queue.name, reason.value)]
    headers[DEATHS] = cast("FieldValue", [latest, *others])
    headers.setdefault("x-first-death-queue", queue.name)
    headers.setdefault("x-first-death-reason", reason.value)
    headers.setdefault("x-first-death-exchange", message.exchange)
    properties.headers = headers
    properties.expiration = None
    key = queue.arguments.dead_letter_routing_key
    return Message(
        exchange=exchange,
        routing_key=message.routing_key if key is None else key,
        properties=properties,
        body=message.body,
    )


def goes_in_circles(message: Message, *, into: str) -> bool:
    """Whether a dead letter comes back to a queue it died in although no consumer ever rejected it.

    Nothing would stop such a circle; RabbitMQ drops the message there, and so do we.
    """
    deaths = _deaths(message)
    return any(death.get("queue") == into for death in deaths) and not any(
        death.get("reason") == DeathReason.REJECTED.value for death in deaths
    )


def _deaths(message: Message) -> list[FieldTable]:
    deaths = (message.properties.headers or {}).get(DEATHS)
    return [death for death in deaths if isinstance(death, dict)] if isinstance(deaths, list) else []
