"""The ``x-…`` arguments of a queue: read, checked, and compared when a queue is declared again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from inferfleet.local.embedded.amqp_errors import precondition_failed

PRIORITY_LEVELS = 255
MAX_LENGTH = 2**63 - 1
LONGEST_MS = 2**32 - 1


class Overflow(StrEnum):
    """What a full queue does with another message: drop the one at its head, or refuse the new one."""

    DROP_HEAD = "drop-head"
    REJECT_PUBLISH = "reject-publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueArguments:
    """The arguments of a queue's declaration; ``None`` is "not given"."""

    max_priority: int | None = None
    max_length: int | None = None
    overflow: Overflow | None = None
    message_ttl: int | None = None
    expires: int | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None

    @classmethod
    def read(cls, table: Mapping[str, object]) -> QueueArguments:
        """Read the arguments of a declaration.

        Ignores arguments that only tune RabbitMQ's storage, and unknown arguments, as RabbitMQ does.

        Raises:
            SoftError: A value is invalid, or needs something that the embedded broker does not support.

        """
        if (queue_type := table.get("x-queue-type", "classic")) != "classic":
            raise precondition_failed(f"the embedded broker has classic queues only, not '{queue_type}'")
        for name in sorted(_UNSUPPORTED & table.keys()):
            raise precondition_failed(f"the embedded broker does not support '{name}'")
        return cls(
            max_priority=_integer(table, "x-max-priority", PRIORITY_LEVELS),
            max_length=_integer(table, "x-max-length", MAX_LENGTH),
            overflow=_overflow(table),
            message_ttl=_integer(table, "x-message-ttl", LONGEST_MS),
            expires=_integer(table, "x-expires", LONGEST_MS, lowest=1),
            dead_letter_exchange=_text(table, "x-dead-letter-exchange"),
            dead_letter_routing_key=_text(table, "x-dead-letter-routing-key"),
        )

    def require_same(self, given: QueueArguments, *, queue: str) -> None:
        """Refuse a declaration whose arguments differ from these."""
        for field in fields(self):
            current, received = getattr(self, field.name), getattr(given, field.name)
            if current != received:
                raise inequivalent(
                    f"x-{field.name.replace('_', '-')}", queue, received=received, current=current
                )


_UNSUPPORTED = frozenset(
    {
        "x-max-length-bytes",
        "x-single-active-consumer",
    }
)


def inequivalent(argument: str, queue: str, *, received: object, current: object) -> Exception:
    """Make the error 406, with RabbitMQ's message."""
    return precondition_failed(
        f"inequivalent arg '{argument}' for queue '{queue}' in vhost '/': "
        f"received '{_shown(received)}' but current is '{_shown(current)}'"
    )


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _integer(table: Mapping[str, object], name: str, highest: int, *, lowest: int = 0) -> int | None:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise precondition_failed(f"invalid arg '{name}': {value!r} is not between {lowest} and {highest}")
    return value


def _text(table: Mapping[str, object], name: str) -> str | None:
    value = table.get(name)
    if value is not None and not isinstance(value, str):
        raise precondition_failed(f"invalid arg '{name}': {value!r} is not a string")
    return value


def _overflow(table: Mapping[str, object]) -> Overflow | None:
    value = table.get("x-overflow")
    if value is None:
        return None
    try:
        return Overflow(str(value))
    except ValueError:
        raise precondition_failed(
            f"invalid arg 'x-overflow': the embedded broker does not know '{value}'"
        ) from None
