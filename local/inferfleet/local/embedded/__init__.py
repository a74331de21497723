"""Embedded stand-ins for RabbitMQ and Redis: servers in this process that speak the real protocols over TCP.

They are for machines that have neither Docker nor the server packages, and for tests. The broker keeps
RabbitMQ's semantics for the part of AMQP 0-9-1 that inferfleet uses, in memory only; ``tests/contract``
checks this. It refuses other methods with "not implemented". It has only classic queues, without dead-letter
exchanges, and nothing expires; it refuses declarations that need more with 406. Nothing survives the process,
no alarm blocks a publisher, and there is no consumer timeout.
"""

from __future__ import annotations

from inferfleet.local.embedded.redis_server import EmbeddedRedis
from inferfleet.local.embedded.server import EmbeddedBroker

__all__ = ["EmbeddedBroker", "EmbeddedRedis"]
