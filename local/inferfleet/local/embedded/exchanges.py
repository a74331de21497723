"""One exchange: its bindings, and which of them a message takes. No input or output."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from inferfleet.local.embedded.amqp_errors import not_implemented
from inferfleet.local.embedded.queues import Message


class ExchangeKind(StrEnum):
    """How an exchange routes: by an equal routing key, to all, or by equal headers."""

    DIRECT = "direct"
    FANOUT = "fanout"
    HEADERS = "headers"


class Binding(NamedTuple):
    """Where an exchange passes messages on to: a queue, or another exchange.

    ``headers`` are those that a message must have, if the exchange goes by headers.
    """

    target: str
    routing_key: str
    to_exchange: bool = False
    headers: frozenset[tuple[str, object]] = frozenset()


class Exchange:
    """An exchange and its bindings. A queue may be bound several times, with different keys or headers."""

    def __init__(self, name: str, *, kind: ExchangeKind, durable: bool, auto_delete: bool) -> None:
        self.name = name
        self.kind = kind
        self.durable = durable
        self.auto_delete = auto_delete
        self.bindings: set[Binding] = set()

    def matching(self, message: Message) -> set[Binding]:
        """Return the bindings that a message takes."""
        return {binding for binding in self.bindings if self._takes(binding, message)}

    def _takes(self, binding: Binding, message: Message) -> bool:
        match self.kind:
            case ExchangeKind.DIRECT:
                return binding.routing_key == message.routing_key
            case ExchangeKind.FANOUT:
                return True
            case ExchangeKind.HEADERS:
                headers: Mapping[str, object] = message.properties.headers or {}
                return all(name in headers and headers[name] == value for name, value in binding.headers)


def required_headers(arguments: Mapping[str, object] | None) -> frozenset[tuple[str, object]]:
    """Read the arguments of a binding: a message must have all of these headers.

    Raises:
        HardError: The arguments ask for something else.

    """
    arguments = arguments or {}
    if arguments.get("x-match", "all") != "all":
        raise not_implemented(f"x-match={arguments['x-match']!r}")
    # As in RabbitMQ, those of the protocol itself do not count.
    return frozenset((name, value) for name, value in arguments.items() if not name.startswith("x-"))
