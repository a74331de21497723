"""What all routes of a gateway share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer import Fleet
from inferfleet.producer.openai.api import OpenAIApi


class Shutdown:
    """The end of a gateway, in two steps.

    First it drains: it accepts nothing new, and ends what a client can resume elsewhere. Then it is ``over``:
    it ends all that is left.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # Futures, because a request that waits for one needs no task of its own.
        self.draining: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()

    def drain(self, *, timeout_s: float) -> None:
        """Drain, and be over after ``timeout_s``."""
        _set(self.draining)
        asyncio.get_running_loop().call_later(timeout_s, _set, self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway's parts. All that a client can do goes through ``api`` and ``fleet``."""

    settings: GatewaySettings
    fleet: Fleet
    api: OpenAIApi
    shutdown: Shutdown = field(default_factory=Shutdown)


def _set(step: asyncio.Future[Any]) -> None:
    if not step.done():
        step.set_result(None)
