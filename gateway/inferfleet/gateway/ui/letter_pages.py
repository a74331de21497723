"""Pages of dead letters: those of a pool, and submitting them again.

Dead letters are those of all tenants, so these pages are not for callers with API keys, and show nothing of a
request. The list reads the oldest letters; a replay, and the count before it, read all letters of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Depends, Request, Response

from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.job_pages import read_level
from inferfleet.gateway.ui.pages import Pages
from inferfleet.gateway.ui.rights import require_whole_fleet
from inferfleet.producer.dead_letters import LetterFilter
from inferfleet.producer.openai.refusals import bad_request
from inferfleet.schemas.errors import PartialReplayError
from inferfleet.schemas.job import Job

READ: Final = 200
"""How many of the oldest letters a page reads."""


def letter_pages(gateway: Gateway, pages: Pages) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/dead-letters", dependencies=[Depends(require_whole_fleet(gateway))])
    dead = gateway.trusted_fleet.dead_letters

    @router.get("")
    async def pools(request: Request) -> Response:
        return pages.page(request, "dead_pools.html", pools=await gateway.trusted_fleet.pools())

    @router.get("/{pool}")
    async def letters(request: Request, pool: str, message: str = "", priority: str = "") -> Response:
        where = _where(message, priority)
        found = await dead.read(pool, limit=READ)
        admitted = [letter for letter in found if where == LetterFilter() or where.admits(letter)]
        return pages.page(
            request,
            "dead_letters.html",
            pool=pool,
            letters=admitted,
            read=len(found),
            number=await dead.count(pool),
            given={"message": message, "priority": priority},
        )

    @router.post("/{pool}/replay")
    async def replay(request: Request, pool: str) -> Response:
        given = await read_form(request, gateway.settings)
        message, priority = given.get("message", ""), given.get("priority", "")
        where = _where(message, priority)
        everything = where == LetterFilter()
        if "confirmed" not in given:
            number = await dead.count(pool, where=None if everything else where)
            return pages.page(
                request,
                "replay.html",
                pool=pool,
                number=number,
                given={"message": message, "priority": priority},
                everything=everything,
                jobs=None,
            )
        counted = given.get("counted", "")
        if everything and not (counted.isdecimal() and len(counted) < 10):
            raise bad_request("counted: must be how many letters there were")
        jobs: Sequence[Job]
        problem = ""
        try:
            jobs = await (
                dead.replay(pool, oldest=int(counted)) if everything else dead.replay(pool, where=where)
            )
        except PartialReplayError as error:
            jobs, problem = error.jobs, str(error)
        return pages.page(
            request,
            "replay.html",
            pool=pool,
            number=len(jobs),
            given={"message": message, "priority": priority},
            everything=everything,
            jobs=jobs,
            problem=problem,
        )

    return router


def _where(message: str, priority: str) -> LetterFilter:
    return LetterFilter(message=message or None, priority=read_level(priority))
