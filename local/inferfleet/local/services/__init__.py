"""Starts RabbitMQ and Redis on one machine, or uses those whose URLs are given.

Most callers only need ``with running_services() as services:``, which yields their URLs and a description in
one line. ``ServicesChoice`` has the kinds of services.
"""

from __future__ import annotations

from inferfleet.local.services.choice import Services, ServicesChoice
from inferfleet.local.services.launcher import running_services

__all__ = ["Services", "ServicesChoice", "running_services"]
