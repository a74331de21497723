"""The AMQP methods that declare, bind and delete: each is one call on the virtual host."""

from __future__ import annotations

from collections.abc import Mapping

from pamqp.base import Frame
from pamqp.commands import Exchange, Queue

from inferfleet.local.embedded.amqp_errors import not_implemented
from inferfleet.local.embedded.exchanges import Binding, required_headers
from inferfleet.local.embedded.virtual_host import VirtualHost

TopologyMethod = (
    Exchange.Declare
    | Exchange.Delete
    | Exchange.Bind
    | Queue.Declare
    | Queue.Delete
    | Queue.Purge
    | Queue.Bind
    | Queue.Unbind
)


def carry_out(method: TopologyMethod, host: VirtualHost, owner: object) -> Frame | None:
    """Execute a method for the connection ``owner``. Return the reply; ``None`` if the method has none.

    Raises:
        AmqpError: The method cannot be executed.

    """
    answer = _do(method, host, owner)
    return None if getattr(method, "nowait", False) else answer


def _do(method: TopologyMethod, host: VirtualHost, owner: object) -> Frame:
    match method:
        case Exchange.Declare():
            if method.internal or method.arguments:
                raise not_implemented("internal exchanges and exchange arguments")
            host.declare_exchange(
                method.exchange,
                kind=method.exchange_type,
                passive=method.passive,
                durable=method.durable,
                auto_delete=method.auto_delete,
            )
            return Exchange.DeclareOk()
        case Exchange.Delete():
            host.delete_exchange(method.exchange, if_unused=method.if_unused)
            return Exchange.DeleteOk()
        case Exchange.Bind():
            headers = required_headers(method.arguments)
            binding = Binding(method.destination, method.routing_key, to_exchange=True, headers=headers)
            host.bind(method.source, binding, owner=owner)
            return Exchange.BindOk()
        case Queue.Declare():
            return _declare_queue(method, host, owner)
        case Queue.Delete():
            count = host.delete_queue(
                method.queue, owner=owner, if_unused=method.if_unused, if_empty=method.if_empty
            )
            return Queue.DeleteOk(message_count=count)
        case Queue.Purge():
            return Queue.PurgeOk(message_count=host.queue(method.queue, owner=owner).purge())
        case Queue.Bind():
            host.bind(method.exchange, _binding(method), owner=owner)
            return Queue.BindOk()
        case Queue.Unbind():
            host.unbind(method.exchange, _binding(method), owner=owner)
            return Queue.UnbindOk()


def _binding(method: Queue.Bind | Queue.Unbind) -> Binding:
    return Binding(method.queue, method.routing_key, headers=required_headers(method.arguments))


def _declare_queue(method: Queue.Declare, host: VirtualHost, owner: object) -> Frame:
    if method.passive:
        queue = host.queue(method.queue, owner=owner)
    else:
        arguments: Mapping[str, object] = method.arguments or {}
        queue = host.declare_queue(
            method.queue,
            durable=method.durable,
            exclusive=method.exclusive,
            auto_delete=method.auto_delete,
            arguments=arguments,
            owner=owner,
        )
    return Queue.DeclareOk(
        queue=queue.name, message_count=queue.ready_count, consumer_count=queue.consumer_count
    )
