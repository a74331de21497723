"""Who may see the whole fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from inferfleet.gateway.gateway import Gateway
from inferfleet.producer.openai.refusals import Refusal, RefusedError


def require_whole_fleet(gateway: Gateway) -> Callable[[], Awaitable[None]]:
    """Make a check that refuses pages about the whole fleet on a gateway with API keys."""

    async def check() -> None:
        if gateway.keys is not None:
            raise RefusedError(
                Refusal(
                    status=HTTPStatus.FORBIDDEN,
                    code="fleet_not_allowed",
                    message="this page shows the whole fleet, and an API key only what its tenant owns: open "
                    "it at a gateway without INFERFLEET_API_KEYS_FILE, which listens on a loopback address",
                )
            )

    return check
