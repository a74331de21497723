"""The broker's only virtual host ``/``: exchanges, queues, bindings, and routing. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from inferfleet.local.embedded.amqp_errors import (
    access_refused,
    not_found,
    not_implemented,
    precondition_failed,
    resource_locked,
)
from inferfleet.local.embedded.exchanges import Binding, Exchange, ExchangeKind
from inferfleet.local.embedded.queue_arguments import QueueArguments, inequivalent
from inferfleet.local.embedded.queues import Message, Queue

DEFAULT_EXCHANGE = ""
RESERVED_PREFIX = "amq."


_KINDS = frozenset(kind.value for kind in ExchangeKind)


class PublishOutcome(NamedTuple):
    """The result of a publish: to how many queues the message was routed, and whether all of them took it."""

    routed: int
    accepted: bool


class VirtualHost:
    """Everything that is declared. ``owner`` is the calling connection, by identity."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}
        self._exchanges = {
            name: Exchange(name, kind=kind, durable=True, auto_delete=False)
            for name, kind in (("amq.direct", ExchangeKind.DIRECT), ("amq.fanout", ExchangeKind.FANOUT))
        }

    def declare_exchange(
        self, name: str, *, kind: str, passive: bool, durable: bool, auto_delete: bool
    ) -> None:
        """Declare an exchange, or check that the existing one is equivalent."""
        existing = self._exchanges.get(name)
        if passive:
            if existing is None and name != DEFAULT_EXCHANGE:
                raise not_found("exchange", name)
            return
        if kind not in _KINDS:
            raise not_implemented(f"exchange type '{kind}'")
        wanted = Exchange(name, kind=ExchangeKind(kind), durable=durable, auto_delete=auto_delete)
        if existing is not None:
            for argument in ("kind", "durable", "auto_delete"):
                current, received = getattr(existing, argument), getattr(wanted, argument)
                if current != received:
                    raise precondition_failed(
                        f"inequivalent arg '{'type' if argument == 'kind' else argument}' for exchange "
                        f"'{name}' in vhost '/': received '{received}' but current is '{current}'"
                    )
            return
        if name == DEFAULT_EXCHANGE or name.startswith(RESERVED_PREFIX):
            raise access_refused(f"exchange name '{name}' contains reserved prefix 'amq.*'")
        self._exchanges[name] = wanted

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete an exchange; a missing one counts as deleted."""
        if name == DEFAULT_EXCHANGE or name.startswith(RESERVED_PREFIX):
            raise access_refused(f"operation not permitted on exchange '{name}'")
        exchange = self._exchanges.get(name)
        if exchange is not None and if_unused and exchange.bindings:
            raise precondition_failed(f"exchange '{name}' in vhost '/' in use")
        self._exchanges.pop(name, None)
        self._unbind_all(name, exchange=True)

    def declare_queue(
        self,
        name: str,
        *,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Mapping[str, object],
        owner: object,
    ) -> Queue:
        """Declare a queue, or check that the existing one is equivalent. An empty name becomes a new one."""
        read = QueueArguments.read(arguments)
        if name in self._queues:
            queue = self.queue(name, owner=owner)
            if exclusive != (queue.owner is not None):
                raise resource_locked(name)
            for argument, current, received in (
                ("durable", queue.durable, durable),
                ("auto_delete", queue.auto_delete, auto_delete),
            ):
                if current != received:
                    raise inequivalent(argument, name, received=received, current=current)
            queue.arguments.require_same(read, queue=name)
            queue.used()
            return queue
        if name.startswith(RESERVED_PREFIX):
            raise access_refused(f"queue name '{name}' contains reserved prefix 'amq.*'")
        name = name or f"{RESERVED_PREFIX}gen-{secrets.token_urlsafe(16)}"
        queue = Queue(
            name,
            arguments=read,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner if exclusive else None,
            vanish=self._remove,
            dead_letter=self._publish_dead_letter,
        )
        self._queues[name] = queue
        return queue

    def queue(self, name: str, *, owner: object) -> Queue:
        """Find a queue that this connection may use."""
        queue = self._queues.get(name)
        if queue is None:
            raise not_found("queue", name)
        if queue.owner is not None and queue.owner is not owner:
            raise resource_locked(name)
        return queue

    def delete_queue(self, name: str, *, owner: object, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue and return how many messages waited in it; a missing queue had none."""
        if name not in self._queues:
            return 0
        queue = self.queue(name, owner=owner)
        if if_unused and queue.consumer_count:
            raise precondition_failed(f"queue '{name}' in vhost '/' in use")
        if if_empty and queue.ready_count:
            raise precondition_failed(f"queue '{name}' in vhost '/' not empty")
        count = queue.ready_count
        self._remove(queue)
        return count

    def bind(self, exchange_name: str, binding: Binding, *, owner: object) -> None:
        """Bind a queue or another exchange to an exchange."""
        exchange = self._exchange_to_bind(exchange_name)
        self._require_target(binding, owner)
        exchange.bindings.add(binding)

    def unbind(self, exchange_name: str, binding: Binding, *, owner: object) -> None:
        """Remove a binding; a missing one counts as removed."""
        exchange = self._exchange_to_bind(exchange_name)
        self._require_target(binding, owner)
        self._discard(exchange, {binding})

    def publish(self, message: Message) -> PublishOutcome:
        """Route a message to its queues."""
        taken = [queue.publish(message) for queue in self._targets(message)]
        return PublishOutcome(routed=len(taken), accepted=all(taken))

    def _publish_dead_letter(self, queue: Queue, message: Message) -> None:
        """Route a dead letter. It is lost if there is no such exchange, or if its queue has no room."""
        exchange, key = queue.arguments.dead_letter_exchange, queue.arguments.dead_letter_routing_key
        if exchange is not None and (exchange == DEFAULT_EXCHANGE or exchange in self._exchanges):
            self.publish(replace(message, exchange=exchange, routing_key=key or message.routing_key))

    def disown(self, owner: object) -> None:
        """Delete the exclusive queues of a closed connection."""
        for queue in [queue for queue in self._queues.values() if queue.owner is owner]:
            self._remove(queue)

    def _require_target(self, binding: Binding, owner: object) -> None:
        if binding.to_exchange:
            self._exchange_to_bind(binding.target)
        else:
            self.queue(binding.target, owner=owner)

    def _exchange_to_bind(self, name: str) -> Exchange:
        if name == DEFAULT_EXCHANGE:
            raise access_refused("operation not permitted on the default exchange")
        exchange = self._exchanges.get(name)
        if exchange is None:
            raise not_found("exchange", name)
        return exchange

    def _remove(self, queue: Queue) -> None:
        self._queues.pop(queue.name, None)
        queue.delete()
        self._unbind_all(queue.name, exchange=False)

    def _unbind_all(self, target: str, *, exchange: bool) -> None:
        for source in list(self._exchanges.values()):
            to_it = {it for it in source.bindings if it.target == target and it.to_exchange is exchange}
            self._discard(source, to_it)

    def _discard(self, exchange: Exchange, bindings: set[Binding]) -> None:
        had_some = bool(exchange.bindings)
        exchange.bindings -= bindings
        if exchange.auto_delete and had_some and not exchange.bindings:
            self._exchanges.pop(exchange.name, None)

    def _targets(self, message: Message) -> list[Queue]:
        names: set[str] = set()
        if message.exchange == DEFAULT_EXCHANGE:
            names = {message.routing_key} & self._queues.keys()
        elif message.exchange not in self._exchanges:
            raise not_found("exchange", message.exchange)
        else:
            passed: set[str] = set()
            passing = {message.exchange}
            while passing:
                exchange = self._exchanges[passing.pop()]
                passed.add(exchange.name)
                for binding in exchange.matching(message):
                    (passing if binding.to_exchange else names).add(binding.target)
                passing -= passed
        # In a fixed order: the order of a set differs between processes.
        return [self._queues[name] for name in sorted(names)]
