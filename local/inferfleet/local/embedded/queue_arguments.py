"""The ``x-…`` arguments of a queue: read, checked, and compared when a queue is declared again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from inferfleet.local.embedded.amqp_errors import precondition_failed

PRIORITY_LEVELS = 255
MAX_LENGTH = 2**32 - 1


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
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-expires",
        "x-max-length-bytes",
        "x-message-ttl",
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


def _integer(table: Mapping[str, object], name: str, highest: int) -> int | None:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise precondition_failed(f"invalid arg '{name}': {value!r} is not between 0 and {highest}")
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
