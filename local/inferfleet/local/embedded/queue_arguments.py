"""The ``x-…`` arguments of a queue: read, checked, and compared when a queue is declared again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from inferfleet.local.embedded.amqp_errors import precondition_failed

MAX_PRIORITY = 255


class Overflow(StrEnum):
    """What a full queue does with one more message: drop the one at its head, or refuse the new one."""

    DROP_HEAD = "drop-head"
    REJECT_PUBLISH = "reject-publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueArguments:
    """What a queue was declared with. Times are in milliseconds, as in AMQP; ``None`` is "not given"."""

    max_priority: int | None = None
    message_ttl: int | None = None
    expires: int | None = None
    max_length: int | None = None
    overflow: Overflow | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None

    @classmethod
    def read(cls, table: Mapping[str, object]) -> QueueArguments:
        """Read the arguments of a declaration.

        Arguments that only tune RabbitMQ's storage are ignored, and so are unknown ones, as RabbitMQ does.

        Raises:
            SoftError: A value makes no sense, or asks for what the embedded broker cannot do.

        """
        if (queue_type := table.get("x-queue-type", "classic")) != "classic":
            raise precondition_failed(f"the embedded broker has classic queues only, not '{queue_type}'")
        for name in _UNSUPPORTED & table.keys():
            raise precondition_failed(f"the embedded broker does not support '{name}'")
        arguments = cls(
            max_priority=_integer(table, "x-max-priority", 0, MAX_PRIORITY),
            message_ttl=_integer(table, "x-message-ttl", 0),
            expires=_integer(table, "x-expires", 1),
            max_length=_integer(table, "x-max-length", 0),
            overflow=_overflow(table),
            dead_letter_exchange=_text(table, "x-dead-letter-exchange"),
            dead_letter_routing_key=_text(table, "x-dead-letter-routing-key"),
        )
        if arguments.dead_letter_routing_key is not None and arguments.dead_letter_exchange is None:
            raise precondition_failed(
                "invalid arg 'x-dead-letter-routing-key': routing_key_but_no_dlx_defined"
            )
        return arguments

    def require_same(self, given: QueueArguments, *, queue: str) -> None:
        """Refuse a declaration whose arguments differ from these."""
        for field in fields(self):
            current, received = getattr(self, field.name), getattr(given, field.name)
            if current != received:
                raise inequivalent(
                    f"x-{field.name.replace('_', '-')}", queue, received=received, current=current
                )


_UNSUPPORTED = frozenset({"x-max-length-bytes", "x-single-active-consumer"})


def inequivalent(argument: str, queue: str, *, received: object, current: object) -> Exception:
    """406, in RabbitMQ's words."""
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


def _integer(table: Mapping[str, object], name: str, lowest: int, highest: int = 2**32 - 1) -> int | None:
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
    value = _text(table, "x-overflow")
    if value is None:
        return None
    try:
        return Overflow(value)
    except ValueError:
        raise precondition_failed(
            f"invalid arg 'x-overflow': the embedded broker does not know '{value}'"
        ) from None
