"""Start RabbitMQ and Redis for one machine, or take the ones whose URLs are given.

``with running_services() as services:`` is all that most callers need; it tells where the two are and in
one line what they are. What runs is told apart by ``ServicesChoice``.
"""

from __future__ import annotations

from inferfleet.local.services.choice import Services, ServicesChoice
from inferfleet.local.services.launcher import running_services

__all__ = ["Services", "ServicesChoice", "running_services"]
