"""Pages of rollouts: how far each is and what both its pools have done; changing its course after a question.

They are about the whole fleet. A rollout is started on the command line, which names its steps and limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal, assert_never

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from inferfleet.gateway.gateway import Gateway
from inferfleet.gateway.ui.fleet_view import FleetView
from inferfleet.gateway.ui.forms import read_form
from inferfleet.gateway.ui.pages import UI_PATH, Pages
from inferfleet.gateway.ui.rights import require_whole_fleet
from inferfleet.producer.job_making import check_pool
from inferfleet.producer.openai.refusals import not_found
from inferfleet.producer.rollout_tests import Finding, findings
from inferfleet.producer.rollout_views import RolloutSides, rollout_sides
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.ended_counts import EndedCounts, quantile
from inferfleet.schemas.errors import RolloutError
from inferfleet.schemas.rollout import Rollout, RolloutPhase
from inferfleet.wire.redis.rollouts import read_rollout

Action = Literal["pause", "resume", "promote", "abort", "finish"]

ACTIONS: Final[Mapping[RolloutPhase, tuple[Action, ...]]] = {
    RolloutPhase.RUNNING: ("pause", "promote", "abort"),
    RolloutPhase.PAUSED: ("resume", "promote", "abort"),
    RolloutPhase.PROMOTED: ("finish", "abort"),
}
"""What people can do with a rollout, by its phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one pool of a rollout has ended since the step began. Times are ``None`` without a sample."""

    pool: str
    role: str
    counts: EndedCounts
    error_rate: float | None
    first_token_s: float | None
    slow_first_token_s: float | None
    wait_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCard:
    """A rollout as the page shows it."""

    rollout: Rollout
    sides: Sequence[Side]
    findings: Sequence[Finding]
    actions: Sequence[Action]


def rollout_pages(gateway: Gateway, pages: Pages, view: FleetView) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/rollouts", dependencies=[Depends(require_whole_fleet(gateway))])
    pipeline, rollouts = gateway.trusted_fleet.pipeline, Rollouts(gateway.trusted_fleet)

    async def found(pool: str) -> Rollout:
        check_pool(pool)
        rollout = (await read_rollout(pipeline, pool)).rollout
        if rollout is None:
            raise not_found(f"The pool {pool!r} has no rollout.", code="not_found")
        return rollout

    @router.get("")
    async def overview(request: Request) -> Response:
        cards = list(map(_card, await rollout_sides(pipeline)))
        return pages.page(request, "rollouts.html", cards=cards)

    @router.get("/{pool}/{action}")
    async def ask(request: Request, pool: str, action: Action) -> Response:
        rollout = await found(pool)
        return pages.page(request, "ask_rollout.html", rollout=rollout, action=action, problem="")

    @router.post("/{pool}/{action}")
    async def change(request: Request, pool: str, action: Action) -> Response:
        form = await read_form(request, gateway.settings)
        await found(pool)
        try:
            match action:
                case "pause":
                    await rollouts.pause(pool)
                case "resume":
                    await rollouts.resume(pool)
                case "promote":
                    allowed = {name: name in form for name in ("allow_rename", "allow_no_workers")}
                    await rollouts.promote(pool, **allowed)
                case "abort":
                    await rollouts.abort(pool, reason=form.get("reason", "").strip() or "by hand")
                case "finish":
                    await rollouts.finish(pool)
                case _:
                    assert_never(action)
        except RolloutError as error:
            rollout, problem = await found(pool), str(error)
            return pages.page(
                request,
                "ask_rollout.html",
                HTTPStatus.CONFLICT,
                rollout=rollout,
                action=action,
                problem=problem,
            )
        view.forget()
        return RedirectResponse(f"{UI_PATH}/rollouts", HTTPStatus.SEE_OTHER)

    return router


def _card(sides: RolloutSides) -> RolloutCard:
    rollout, stable, canary = sides
    return RolloutCard(
        rollout=rollout,
        sides=(_side(rollout.pool, "stable", stable), _side(rollout.to, "canary", canary)),
        findings=findings(rollout, stable=stable, canary=canary) if rollout.phase.ongoing else (),
        actions=ACTIONS.get(rollout.phase, ()),
    )


def _side(pool: str, role: str, counts: EndedCounts) -> Side:
    return Side(
        pool=pool,
        role=role,
        counts=counts,
        error_rate=counts.error_rate if counts.total else None,
        first_token_s=quantile(counts.first_token, 0.5) if counts.first_token else None,
        slow_first_token_s=quantile(counts.first_token, 0.95) if counts.first_token else None,
        wait_s=quantile(counts.wait, 0.5) if counts.wait else None,
    )
