"""RabbitMQ and Redis without either: servers in this process that speak the real protocols over TCP.

For machines that have neither Docker nor the server packages, and for tests. The broker keeps RabbitMQ's
semantics for the part of AMQP 0-9-1 that inferfleet uses, in memory only; ``tests/contract`` holds it to
them. Other methods it refuses with "not implemented" rather than do them differently. It has classic
queues only, without dead-letter exchanges, and nothing in it expires: what asks for more is refused with 406.
Nothing survives the process, no alarm blocks a publisher, and no unacked message is ever too old.
"""

from __future__ import annotations

from inferfleet.local.embedded.redis_server import EmbeddedRedis
from inferfleet.local.embedded.server import EmbeddedBroker

__all__ = ["EmbeddedBroker", "EmbeddedRedis"]
