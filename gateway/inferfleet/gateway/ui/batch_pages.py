"""Pages of batches: the list, one with its progress, and cancelling it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.batches.batch_routes import cancel_batch, find_batch
from inferfleet.gateway.batches.file_routes import files_of
from inferfleet.gateway.callers import caller_of
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.pages import UI_PATH, Pages

LISTED: Final = 50


def batch_pages(gateway: Gateway, pages: Pages) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/batches")

    @router.get("")
    async def batches(request: Request, after: str = "") -> Response:
        files_of(gateway)
        page = await gateway.batches.page(caller_of(request).tenant, after=after or None, limit=LISTED)
        return pages.page(request, "batches.html", batches=page.records, more=page.more, after=after)

    @router.get("/{batch_id}")
    async def batch(request: Request, batch_id: str) -> Response:
        record = await find_batch(gateway, batch_id, caller_of(request))
        return pages.page(request, "batch.html", batch=record)

    @router.post("/{batch_id}/cancel")
    async def cancel(request: Request, batch_id: str) -> Response:
        await read_form(request, gateway.settings)
        await cancel_batch(gateway, batch_id, caller_of(request))
        return RedirectResponse(f"{UI_PATH}/batches/{batch_id}", HTTPStatus.SEE_OTHER)

    return router
