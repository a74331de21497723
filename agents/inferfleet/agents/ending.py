"""Ends runs: records how, tells the parent, and cancels what a run that fails has started."""

from __future__ import annotations

import logging
from contextlib import suppress

from inferfleet.agents.held_run import HeldRun
from inferfleet.agents.runs import AgentRuns
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import InferfleetError, JobNotFoundError, RunNotFoundError
from inferfleet.schemas.run import ChildStarted, RunFailure, RunFailureCode, RunResult, RunState

logger = logging.getLogger(__name__)


async def fail(held: HeldRun, failure: RunFailure, *, fleet: Fleet, runs: AgentRuns) -> RunResult:
    """End a run without an answer, and all that it has started before.

    Raises:
        RunLostError: Another runner has the run.
        InferfleetError: A service failed; the run is still held.

    """
    with suppress(JobNotFoundError):
        if held.history.job_id is not None:
            await fleet.cancel(held.history.job_id)
    for call in held.history.open_calls():
        if isinstance(call.last, ChildStarted):
            with suppress(RunNotFoundError):
                await runs.cancel(call.last.run_id)
    state = RunState.CANCELLED if failure.code is RunFailureCode.CANCELLED else RunState.FAILED
    result = result_of(held, state, error=failure)
    await conclude(held, result, runs=runs)
    return result


async def conclude(held: HeldRun, result: RunResult, *, runs: AgentRuns) -> None:
    """Record how a run has ended, and tell its parent.

    Raises:
        RunLostError: Another runner has the run.
        InferfleetError: A service failed; the run is still held.

    """
    await held.end(result)
    try:
        await runs.conclude(held.order, result)
    except InferfleetError as error:
        logger.warning("run %s has ended; a sweep tells its parent (%s)", result.run_id, error)


def result_of(
    held: HeldRun,
    state: RunState,
    *,
    text: str = "",
    cut_off: bool = False,
    error: RunFailure | None = None,
) -> RunResult:
    """Return the result of a run that ends now."""
    return RunResult(
        run_id=held.order.id,
        state=state,
        text=text,
        cut_off=cut_off,
        error=error,
        steps=held.history.answers,
        tokens=held.history.tokens,
        cost=held.history.cost,
    )
