"""Makes a dead letter: the original message, why it was given up, and which parts it could not carry.

A dead letter carries the body byte for byte. It carries a property or header if every reader of dead letters
can read it, the broker accepts it, and it means the same there as in the queue of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika import DeliveryMode
from pamqp import encode

from inferfleet.schemas import Failure, names
from inferfleet.schemas.message import derived_id
from inferfleet.wire.rabbitmq.frames import FRAME_OVERHEAD, SpelledProperties
from inferfleet.wire.rabbitmq.headers import Entry, FieldTable
from inferfleet.wire.rabbitmq.messages import OutgoingMessage
from inferfleet.worker.broker import Delivery

_TEXTS: Final = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_type", "app_id")
"""Properties that a dead letter carries unchanged. It has its own priority and delivery mode."""

_ACTING: Final = ("expiration", "user_id", "cluster_id")
"""Properties with an effect: they would expire the letter, or make the broker refuse it."""

_NOT_CARRIED: Final = frozenset(
    name.encode()
    for name in (
        # These would route the letter to other queues, too, or make it count as a cycle.
        *("CC", "BCC", "x-death"),
        names.HEADER_CODE,
        names.HEADER_MESSAGE,
        names.HEADER_ATTEMPTS,
        names.HEADER_WORKER,
        names.HEADER_DIED_AT,
        names.HEADER_LEFT_OUT,
    )
)
"""Headers with an effect, and our own."""

_LEFT_OUT_LENGTH: Final = 512
"""The longest list of left-out properties and headers, in ASCII characters."""

_NAME_LENGTH: Final = 64
"""How many characters of a header's name the list quotes."""

_FIXED: Final = 2560
"""Room in the frame for the fixed part: the properties, and our own headers except the reason."""

_REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
"""The replacement for text of a property that is not UTF-8."""


def dead_letter(
    delivery: Delivery,
    failure: Failure,
    *,
    attempts: int,
    worker_id: str,
    died_at: datetime,
    frame_max: int,
) -> OutgoingMessage:
    """Make the dead letter of a message. The broker accepts the letter of any message.

    ``frame_max`` is the size of the broker's largest frame in bytes: everything except the body must fit.
    """
    properties, left_out = _properties(delivery.properties)
    message_id = delivery.message_id
    if not message_id or _REPLACED in message_id:
        if message_id:
            left_out.append("message_id")
        message_id = derived_id(delivery.body, message_id)
    room = frame_max - FRAME_OVERHEAD
    # A quarter of the frame for the reason: enough for 4,096 characters in frames of any usual size.
    reason = failure.message.encode(errors="replace")[: room // 4].decode(errors="ignore")
    headers: dict[str, Any] = {
        names.HEADER_CODE: failure.code.value,
        names.HEADER_MESSAGE: reason,
        names.HEADER_ATTEMPTS: attempts,
        names.HEADER_WORKER: worker_id,
        names.HEADER_DIED_AT: died_at.isoformat(),
    }
    room -= len(reason.encode()) + _FIXED + _LEFT_OUT_LENGTH
    carried = bytearray()
    for entry in _entries(delivery.headers):
        fits = len(carried) + len(entry.spelling) <= room
        if entry.sound and fits and entry.name not in _NOT_CARRIED:
            carried += entry.spelling
        else:
            left_out.append(_named(entry))
    if left_out:
        headers[names.HEADER_LEFT_OUT] = _listed(left_out)
    return OutgoingMessage(
        delivery.body,
        SpelledProperties(
            encode.field_table(headers)[4:] + carried,
            message_id=message_id,
            delivery_mode=DeliveryMode.PERSISTENT.value,
            **properties,
        ),
    )


def _properties(came: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Split a message's properties into those to carry, and the names of those to leave out."""
    carried: dict[str, Any] = {
        name: came[name] for name in _TEXTS if _REPLACED not in came.get(name, _REPLACED)
    }
    left_out = [name for name in (*_TEXTS, *_ACTING) if came.get(name) and name not in carried]
    if "timestamp" in came:
        try:
            carried["timestamp"] = datetime.fromtimestamp(came["timestamp"], UTC)
        except (ValueError, OverflowError, OSError):
            left_out.append("timestamp")
    return carried, left_out


def _entries(headers: Mapping[str, Any]) -> Iterator[Entry]:
    # The headers of a turn that another message carries were never spelled.
    table = headers if isinstance(headers, FieldTable) else FieldTable(encode.field_table(dict(headers))[4:])
    return table.entries()


def _named(entry: Entry) -> str:
    if not entry.name and not entry.sound:
        return "headers after one without an end"
    name = entry.name[:_NAME_LENGTH].decode(errors="backslashreplace")
    return f"header {name!a}"


def _listed(left_out: list[str]) -> str:
    """List what was left out, as far as there is room, and how many more there were."""
    text = ""
    for count, name in enumerate(left_out):
        longer = f"{text}, {name}" if text else name
        if len(longer) > _LEFT_OUT_LENGTH - len(", and 65,536 more"):
            return f"{text}, and {len(left_out) - count:,} more"
        text = longer
    return text
