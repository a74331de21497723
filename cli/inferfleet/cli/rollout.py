"""``inferfleet rollout``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import typer

from inferfleet.cli.options import JsonFlag, live_pools, not_empty, parse_duration, producer_settings
from inferfleet.cli.printing import print_told
from inferfleet.cli.terminal import err, out
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas.rollout import Rollout
from inferfleet.wire.redis.rollouts import Kept

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PoolArgument = Annotated[
    str,
    typer.Argument(
        metavar="POOL",
        help="The pool to which the jobs are submitted.",
        callback=not_empty,
        autocompletion=live_pools,
    ),
]


AllowRename = Annotated[
    bool,
    typer.Option("--allow-rename", help="Accept a canary pool that lacks a served model or adapter."),
]
AllowNoWorkers = Annotated[
    bool, typer.Option("--allow-no-workers", help="Accept a canary pool without a ready worker.")
]


@app.callback()
def rollouts() -> None:
    """Move the jobs of a pool to the pool with a new version, step by step."""


@app.command()
def start(
    pool: PoolArgument,
    *,
    to: Annotated[
        str, typer.Option("--to", help="The canary pool.", callback=not_empty, autocompletion=live_pools)
    ],
    steps: Annotated[
        str, typer.Option("--steps", help="Percentages of the jobs, one for each step.")
    ] = "5,25,50,100",
    interval: Annotated[str, typer.Option("--interval", help="Minimum duration of a step.")] = "10m",
    max_error_rate: Annotated[
        str,
        typer.Option("--max-error-rate", help="Percentage of failed attempts to tolerate, with its sign."),
    ] = "1%",
    max_ttft_ratio: Annotated[
        float,
        typer.Option(
            "--max-ttft-ratio", help="Limit of the time to first token, as a multiple of the pool's own."
        ),
    ] = 1.2,
    max_wait_ratio: Annotated[
        float, typer.Option("--max-wait-ratio", help="Limit of the wait, as a multiple of the pool's own.")
    ] = 2.0,
    worker_timeout: Annotated[
        str | None,
        typer.Option(
            "--worker-timeout",
            help="Abort after this long without a ready worker for the canary pool's jobs; by default 1m, or "
            "10m with --allow-no-workers.",
        ),
    ] = None,
    stall_timeout: Annotated[
        str,
        typer.Option(
            "--stall-timeout",
            help="Abort when jobs have waited this long in the canary pool, and its workers have ended no "
            "attempt and generated no token.",
        ),
    ] = "5m",
    allow_rename: AllowRename = False,
    allow_no_workers: AllowNoWorkers = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a rollout. A running gateway takes it from step to step, or aborts it."""
    seconds = _duration(interval, "'--interval'")
    worker_timeout_s = None if worker_timeout is None else _duration(worker_timeout, "'--worker-timeout'")
    stall_timeout_s = _duration(stall_timeout, "'--stall-timeout'")
    weights = [_percent(step, "'--steps'") for step in steps.split(",")]
    if not max_error_rate.rstrip().endswith("%"):
        # Whoever means one in a hundred may write 0.01, and would get a hundredth of that.
        raise typer.BadParameter(
            f"{max_error_rate!r} is not a percentage like 1%; give it with its sign",
            param_hint="'--max-error-rate'",
        )
    error_rate = _percent(max_error_rate, "'--max-error-rate'") / 100
    _print(
        _run(
            lambda rollouts: rollouts.start(
                pool,
                to=to,
                steps=weights,
                interval_s=seconds,
                max_error_rate=error_rate,
                max_ttft_ratio=max_ttft_ratio,
                max_wait_ratio=max_wait_ratio,
                worker_timeout_s=worker_timeout_s,
                stall_timeout_s=stall_timeout_s,
                allow_rename=allow_rename,
                allow_no_workers=allow_no_workers,
            )
        ),
        as_json=as_json,
    )


@app.command()
def status(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """Show the rollout of a pool."""
    kept, paused_at = _run(lambda rollouts: _read(rollouts, pool))
    assert kept.rollout is not None  # noqa: S101 - ``read`` raises
    _print(kept.rollout, as_json=as_json, more={"canary_paused_at": paused_at})
    if kept.rollout.phase.ongoing and paused_at is not None and not as_json:
        out(
            f"the canary pool has been paused since {_moment(paused_at)}, so its jobs wait and the rollout "
            f"stays as it is: `inferfleet pool resume {kept.rollout.to}`, or abort it\n"
        )
    _tell_of_no_controller(kept)


@app.command()
def pause(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """Stay at this weight. The rollout is still aborted if the canary pool does worse."""
    _change(lambda rollouts: rollouts.pause(pool), as_json=as_json)


@app.command()
def resume(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """Let a paused rollout go on."""
    _change(lambda rollouts: rollouts.resume(pool), as_json=as_json)


@app.command()
def promote(
    pool: PoolArgument,
    *,
    allow_rename: AllowRename = False,
    allow_no_workers: AllowNoWorkers = False,
    as_json: JsonFlag = False,
) -> None:
    """Send all jobs to the canary pool now."""
    _print(
        _run(
            lambda rollouts: rollouts.promote(
                pool, allow_rename=allow_rename, allow_no_workers=allow_no_workers
            )
        ),
        as_json=as_json,
    )


@app.command()
def abort(
    pool: PoolArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; `rollout status` shows it.")] = "by hand",
    as_json: JsonFlag = False,
) -> None:
    """Send no more jobs to the canary pool, and move back those that wait there."""
    _change(lambda rollouts: rollouts.abort(pool, reason=reason), as_json=as_json)


@app.command()
def finish(pool: PoolArgument, *, as_json: JsonFlag = False) -> None:
    """End a rollout that was promoted: the pool takes its own jobs again."""
    _print(_run(lambda rollouts: rollouts.finish(pool)), as_json=as_json)


def _change(work: Callable[[Rollouts], Awaitable[Rollout]], *, as_json: bool) -> None:
    """Change a rollout and print it; say so if nobody goes on with it."""

    async def changed(rollouts: Rollouts) -> tuple[Rollout, Kept]:
        rollout = await work(rollouts)
        return rollout, await rollouts.read(rollout.pool)

    rollout, kept = _run(changed)
    _print(rollout, as_json=as_json)
    _tell_of_no_controller(kept)


def _tell_of_no_controller(kept: Kept) -> None:
    if kept.rollout is not None and kept.rollout.phase.controlled and not kept.controller:
        err("inferfleet: no gateway controls this rollout, so it stays as it is; start a gateway\n")


def _duration(text: str, hint: str) -> float:
    seconds = parse_duration(text)
    if seconds is None:
        raise typer.BadParameter(f"{text!r} is not a duration like 90s or 10m", param_hint=hint)
    return seconds


def _percent(text: str, hint: str) -> float:
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        raise typer.BadParameter(f"{text.strip()!r} is not a percentage like 5", param_hint=hint) from None


async def _read(rollouts: Rollouts, pool: str) -> tuple[Kept, datetime | None]:
    kept = await rollouts.read(pool)
    assert kept.rollout is not None  # noqa: S101 - ``read`` raises
    return kept, await rollouts.canary_paused_at(kept.rollout)


def _print(rollout: Rollout, *, as_json: bool, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    if as_json:
        shown = rollout.model_dump(mode="json", exclude={"stable_before", "canary_before"})
        print_told("", {**shown, "weight": rollout.weight, **more}, as_json=True)
        return
    out(
        f"{rollout.pool} to {rollout.to}: {rollout.phase}, {rollout.weight:g} % of the jobs, "
        f"since {_moment(rollout.since)}\n"
    )
    if rollout.phase.ongoing:
        steps = ", ".join(f"{step:g}" for step in rollout.steps)
        out(f"step {rollout.step + 1} of {len(rollout.steps)} ({steps} %), {rollout.interval_s:g} s each\n")
    if rollout.phase.ongoing and rollout.unserved_since is not None:
        out(
            "the canary pool has had no ready worker, or one that lacks a model or adapter of the pool, "
            f"since {_moment(rollout.unserved_since)}; the rollout aborts after "
            f"{rollout.worker_timeout_s:g} s of that\n"
        )
    if rollout.phase.ongoing and rollout.stalled_since is not None:
        out(
            "jobs wait in the canary pool, whose workers have ended no attempt and generated no token since "
            f"{_moment(rollout.stalled_since)}; the rollout aborts after {rollout.stall_timeout_s:g} s of "
            "that\n"
        )
    if rollout.reason:
        out(f"reason: {rollout.reason}\n")


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _run(work: Callable[[Rollouts], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Fleet.connect(producer_settings()) as fleet:
            return await work(Rollouts(fleet))

    return asyncio.run(connected())
