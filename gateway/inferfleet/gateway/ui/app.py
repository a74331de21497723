"""The application of the web page, which the gateway's mounts at ``/ui``. Its errors are pages."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from inferfleet.gateway.callers import ANYBODY
from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.batch_pages import batch_pages
from inferfleet.gateway.ui.fleet_pages import fleet_pages
from inferfleet.gateway.ui.fleet_view import FleetView
from inferfleet.gateway.ui.job_pages import job_pages
from inferfleet.gateway.ui.letter_pages import letter_pages
from inferfleet.gateway.ui.pages import UI_PATH, Pages, SecureHeaders, came_from
from inferfleet.gateway.ui.rollout_pages import rollout_pages
from inferfleet.gateway.ui.run_pages import run_pages
from inferfleet.gateway.ui.session_pages import session_pages
from inferfleet.gateway.ui.sign_in import SignedOutError, sign_in_routes, signed_in, to_sign_in
from inferfleet.producer.openai.refusals import RefusedError, refusal_of
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.errors import (
    DeadLettersBusyError,
    DeadLettersGoneError,
    InferfleetError,
    UnknownWorkerError,
)
from inferfleet.schemas.problems import sentence

_STATIC: Final = Path(__file__).parent / "static"


def make_ui(gateway: Gateway, view: FleetView) -> ASGIApp:
    """Make the application."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    pages = Pages(gateway)

    async def require_caller(request: Request) -> None:
        signed_in(gateway, request)

    inside = APIRouter(dependencies=[Depends(require_caller)])

    @inside.get("/")
    async def first() -> Response:
        path = "fleet" if gateway.keys is None else "jobs"
        return RedirectResponse(f"{UI_PATH}/{path}", HTTPStatus.SEE_OTHER)

    for make in (session_pages, run_pages, batch_pages, letter_pages):
        inside.include_router(make(gateway, pages))
    for make_with in (job_pages, fleet_pages, rollout_pages):
        inside.include_router(make_with(gateway, pages, view))
    app.include_router(inside)
    app.include_router(sign_in_routes(gateway, pages))
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_exception_handler(SignedOutError, _signed_out)
    for kind in (
        InferfleetError,
        RefusedError,
        HTTPException,
        RequestValidationError,
        Exception,
    ):
        app.add_exception_handler(kind, partial(_refused, gateway, pages))
    return SecureHeaders(app)


async def _signed_out(request: Request, _: Exception) -> Response:
    return to_sign_in(request)


async def _refused(gateway: Gateway, pages: Pages, request: Request, error: Any) -> Response:
    if not hasattr(request.state, "caller"):
        request.state.caller = ANYBODY
    status, message = _told(error)
    message = TenantFleet(gateway.trusted_fleet, request.state.caller.tenant).visible_text(message)
    return pages.page(request, "error.html", status, status=status, message=message, back=came_from(request))


def _told(error: Exception) -> tuple[HTTPStatus, str]:
    match error:
        case UnknownWorkerError():
            return HTTPStatus.NOT_FOUND, str(error)
        case DeadLettersGoneError() | DeadLettersBusyError():
            return HTTPStatus.CONFLICT, str(error)
        case InferfleetError() | RefusedError():
            refusal = refusal_of(error)
            return refusal.status, refusal.message
        case HTTPException():
            status = HTTPStatus(error.status_code)
            return status, "There is no such page." if status is HTTPStatus.NOT_FOUND else status.phrase
        case RequestValidationError():
            problem = error.errors()[0]
            return HTTPStatus.BAD_REQUEST, f"{problem['loc'][-1]}: {sentence(problem, quoting=True)}"
        case _:
            return (
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "The gateway failed unexpectedly; its log has the details.",
            )
