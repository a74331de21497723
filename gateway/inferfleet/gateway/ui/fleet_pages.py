"""Pages of the whole fleet: pools and workers; pausing a pool, and draining a worker, after a question.

All viewers of a gateway's page share one snapshot each ``FRESH_S``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.fleet_view import FleetView
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.pages import UI_PATH, Pages
from inferfleet.gateway.ui.plots import plots
from inferfleet.gateway.ui.rights import require_whole_fleet
from inferfleet.producer.openai.refusals import not_found

FLEET_PATH: Final = f"{UI_PATH}/fleet"

DRAIN_S: Final = 10.0
"""How long a worker has to begin to drain until the page says that it has not answered."""


def fleet_pages(gateway: Gateway, pages: Pages, view: FleetView) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/fleet", dependencies=[Depends(require_whole_fleet(gateway))])
    fleet = gateway.trusted_fleet

    @router.get("")
    async def overview(request: Request) -> Response:
        snapshot = await view.snapshot()
        drawn = [] if "Redis" in snapshot.unreachable else plots(await view.history.read(), snapshot.at)
        return pages.page(request, "fleet.html", fleet=snapshot, plots=drawn)

    @router.get("/pools/{pool}/{action}")
    async def ask_pool(request: Request, pool: str, action: Literal["pause", "resume"]) -> Response:
        status = await fleet.pool(pool)
        return pages.page(request, "ask_pool.html", pool=status, action=action)

    @router.post("/pools/{pool}/{action}")
    async def change_pool(request: Request, pool: str, action: Literal["pause", "resume"]) -> Response:
        await read_form(request, gateway.settings)
        if action == "pause":
            await fleet.pause_pool(pool)
        else:
            await fleet.resume_pool(pool)
        view.forget()
        return RedirectResponse(FLEET_PATH, HTTPStatus.SEE_OTHER)

    @router.get("/workers/{worker_id:path}/drain")
    async def ask_worker(request: Request, worker_id: str) -> Response:
        found = [worker for worker in await fleet.workers() if worker.worker_id == worker_id]
        if not found:
            raise not_found(f"No worker {worker_id[:128]!r} is alive.", code="not_found")
        return pages.page(request, "ask_worker.html", worker=found[0])

    @router.post("/workers/{worker_id:path}/drain")
    async def drain(request: Request, worker_id: str) -> Response:
        await read_form(request, gateway.settings)
        await fleet.drain(worker_id, timeout_s=DRAIN_S)
        view.forget()
        return RedirectResponse(FLEET_PATH, HTTPStatus.SEE_OTHER)

    return router
