"""Answers a request with a refusal."""

from __future__ import annotations

from typing import Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

from inferfleet.producer.openai.refusals import Refusal

_STATE: Final = "inferfleet.refusal"


class RefusalAnswer(Response):
    """Answers with a refusal, and notes its code for the access log and the metrics."""

    def __init__(self, refusal: Refusal, **headers: str) -> None:
        super().__init__(refusal.body(), refusal.status, {**refusal.headers(), **headers})
        self._code = refusal.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        scope[_STATE] = self._code
        await super().__call__(scope, receive, send)


def refusal_in(scope: Scope) -> str | None:
    """Return the code of the refusal of a request, if it was refused."""
    code: str | None = scope.get(_STATE)
    return code
