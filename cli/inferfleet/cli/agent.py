"""``inferfleet agent``: runs agents, and starts, shows and answers their runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import orjson
import typer
from pydantic import ValidationError

from inferfleet.agents.runs import AgentRuns, Question
from inferfleet.cli.options import JsonFlag, none_empty, not_empty, producer_settings
from inferfleet.cli.printing import tell_of_more
from inferfleet.cli.reading import STANDARD, read_text
from inferfleet.cli.root import import_command
from inferfleet.cli.terminal import err, line, out, shown_id
from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.errors import InvalidJobError, RunError
from inferfleet.schemas.prices import plain
from inferfleet.schemas.problems import describe
from inferfleet.schemas.run import (
    DEFAULT_AGENT_QUEUE,
    QuestionAsked,
    RunLimits,
    RunRecord,
    RunResult,
    RunState,
    RunSummary,
    Step,
)
from inferfleet.schemas.settings import LogFormat

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id, as printed by `start`.", callback=not_empty)
]
QueueOption = Annotated[str, typer.Option("--queue", help="Queue of the runs.", callback=not_empty)]
KeyOption = Annotated[str | None, typer.Option(help="Starts the run only once.", callback=not_empty)]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait for its end, and print its answer.")]
QuestionOption = Annotated[
    str | None,
    typer.Option(
        "--question",
        help="The question, like 2.0:1; needed unless it is the run's first.",
        callback=not_empty,
    ),
]


@app.callback()
def agent() -> None:
    """Agents: durable loops of model and tools."""


@app.command()
def run(
    agents: Annotated[
        list[str], typer.Argument(metavar="MODULE:AGENT...", help="The agents.", callback=none_empty)
    ],
    *,
    queue: Annotated[
        str | None, typer.Option(help="Queue whose runs to take; `default` by default.", callback=not_empty)
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help="How many runs at once, 32 by default.")] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port for health and metrics, none by default; 0 picks a free one.")
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Log format: JSON lines or console text.")
    ] = None,
) -> None:
    """Run agents until SIGTERM: take their runs from the queue, and continue those of runners that died."""
    runner = import_command("inferfleet agent run", "inferfleet.cli.agent_runner", extra="worker")
    runner.run_process(
        agents, agent_queue=queue, max_runs=max_runs, http_port=http_port, log_format=log_format
    )


@app.command()
def start(
    name: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.", callback=not_empty)],
    text: Annotated[str, typer.Argument(metavar="INPUT", help="What to ask it; `-` is stdin.")],
    *,
    queue: QueueOption = DEFAULT_AGENT_QUEUE,
    priority: Annotated[
        str | None, typer.Option(help="0 to 9, or batch, normal, high, urgent; by default the agent's.")
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT", help="What it may cost, in the currency of the prices.", callback=not_empty
        ),
    ] = None,
    input_price: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="Price of a million tokens of prompts, if the agent has no prices.",
            callback=not_empty,
        ),
    ] = None,
    cached_input_price: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT", help="Their price if they are cached; by default the same.", callback=not_empty
        ),
    ] = None,
    output_price: Annotated[
        str | None,
        typer.Option(metavar="AMOUNT", help="Price of a million tokens of answers.", callback=not_empty),
    ] = None,
    idempotency_key: KeyOption = None,
    wait: WaitFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a run of an agent, and print its id."""
    asked = read_text(STANDARD) if text == "-" else text
    prices = {"input": input_price, "cached_input": cached_input_price, "output": output_price}
    limits = _limits(max_cost, {name: price for name, price in prices.items() if price is not None})

    async def begin(runs: AgentRuns) -> str:
        await runs.require_queue(queue)
        return await runs.start(
            name, asked, queue=queue, priority=priority, limits=limits, idempotency_key=idempotency_key
        )

    _begin(begin, wait=wait, as_json=as_json)


@app.command()
def replay(
    run_id: RunArgument,
    *,
    from_step: Annotated[
        int,
        typer.Option(
            min=1, help="Keep what comes before this call of the model, with the results of its tool calls."
        ),
    ] = 1,
    idempotency_key: KeyOption = None,
    wait: WaitFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a run with the order of another one. Tool calls that are not kept are made again."""

    async def begin(runs: AgentRuns) -> str:
        await runs.require_queue((await runs.get(run_id)).order.queue)
        return await runs.replay(run_id, from_step=from_step, idempotency_key=idempotency_key)

    _begin(begin, wait=wait, as_json=as_json)


def _begin(begin: Callable[[AgentRuns], Awaitable[str]], *, wait: bool, as_json: bool) -> None:
    """Start a run, and print its id, or its answer if this waits for it."""

    async def work(runs: AgentRuns) -> tuple[str, RunResult | None]:
        run_id = await begin(runs)
        if wait:
            err(f"{shown_id(run_id)}\n")
        return run_id, await runs.result(run_id) if wait else None

    run_id, result = _run(work)
    if result is None:
        _print_json({"id": run_id}) if as_json else out(f"{shown_id(run_id)}\n")
        return
    if as_json:
        _print_json(result.model_dump(mode="json"))
    elif result.state is RunState.SUCCEEDED:
        out(f"{result.text}\n")
    if result.state is not RunState.SUCCEEDED:
        err(f"{_end(result)}\n")
        raise typer.Exit(1)


@app.command("list")
def list_(
    *,
    queue: QueueOption = DEFAULT_AGENT_QUEUE,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 1000,
    as_json: JsonFlag = False,
) -> None:
    """List the unfinished runs of a queue."""
    found = _run(lambda runs: runs.list(queue, limit=limit + 1))
    if len(found) > limit:
        tell_of_more(limit)
        del found[limit:]
    if as_json:
        _print_json([each.model_dump(mode="json") for each in found])
        return
    for each in found:
        begun = datetime.fromtimestamp(each.created_ms / 1000, UTC)
        fields = (shown_id(each.id), _state(each), line(each.agent))
        out("  ".join((*fields, f"{begun:%Y-%m-%d %H:%M:%S}")) + "\n")


@app.command()
def show(run_id: RunArgument, *, as_json: JsonFlag = False) -> None:
    """Show a run: its state, its steps, and what it asks."""

    async def read(runs: AgentRuns) -> tuple[RunRecord, Sequence[Step], Sequence[Question]]:
        record = await runs.get(run_id)
        return (record, *await runs.steps_and_questions(record))

    record, steps, questions = _run(read)
    if as_json:
        known = record.model_dump(mode="json")
        made = [step.model_dump(mode="json") for step in steps]
        _print_json({**known, "steps": made, "questions": [asdict(question) for question in questions]})
        return
    out(f"{shown_id(record.order.id)}  {_state(record)}  {line(record.order.agent)}\n")
    for step in steps:
        fields = step.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
        out(f"  {step.kind}  {line(orjson.dumps(fields).decode())}\n")
    for question in questions:
        out(f"question {question.id} ({question.kind}): {line(question.tool)}({line(question.arguments)})\n")
    if record.result is not None:
        out(f"{_end(record.result)}\n")
    elif record.cost is not None:
        out(f"cost {plain(record.cost)} so far\n")


@app.command()
def cancel(run_id: RunArgument, *, as_json: JsonFlag = False) -> None:
    """Cancel a run, and all that it has started. A runner does it."""
    state = _run(lambda runs: runs.cancel(run_id))
    _print_json({"id": run_id, "state": state}) if as_json else out(f"{shown_id(run_id)}  {state}\n")


@app.command()
def approve(
    run_id: RunArgument,
    *,
    question: QuestionOption = None,
    result: Annotated[
        str | None, typer.Option(help="Do not make the call, and give the model this result.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a run make a tool call that waits for approval, or again one whose outcome is unknown."""

    async def answer(runs: AgentRuns) -> str:
        asked = question or await _first_question(runs, run_id)
        await runs.approve(run_id, asked, result=result)
        return asked

    _print_answered(_run(answer), as_json=as_json)


@app.command()
def deny(
    run_id: RunArgument,
    *,
    question: QuestionOption = None,
    reason: Annotated[str, typer.Option(help="What the model reads.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Let a run not make a tool call. The model reads why."""

    async def answer(runs: AgentRuns) -> str:
        asked = question or await _first_question(runs, run_id)
        await runs.deny(run_id, asked, reason=reason)
        return asked

    _print_answered(_run(answer), as_json=as_json)


async def _first_question(runs: AgentRuns, run_id: str) -> str:
    """Return the only question that a run has ever asked. A repeated command must not answer the next one."""
    steps, asks = await runs.steps_and_questions(await runs.get(run_id))
    if not asks:
        raise RunError(f"run {run_id} asks nothing")
    if sum(isinstance(step, QuestionAsked) for step in steps) > 1:
        which = ", ".join(f"{each.id} ({each.tool})" for each in asks)
        raise RunError(f"run {run_id} has asked several questions, now {which}: name it with --question")
    return asks[0].id


def _print_answered(question: str, *, as_json: bool) -> None:
    _print_json({"question": question}) if as_json else out(f"{line(question)}\n")


def _limits(max_cost: str | None, prices: Mapping[str, str]) -> RunLimits | None:
    """Return what limits the cost of a run; ``None`` if no option does."""
    asked = {name: value for name, value in {"max_cost": max_cost, "prices": prices}.items() if value}
    try:
        return RunLimits.model_validate(asked) if asked else None
    except ValidationError as error:
        raise InvalidJobError(f"invalid run: {describe(error, quoting=True)}") from error


def _state(run: RunSummary | RunRecord) -> str:
    return f"{run.state} ({run.waits_for})" if run.waits_for else run.state


def _end(result: RunResult) -> str:
    why = f": {result.error.code}: {line(result.error.message)}" if result.error else ""
    text = f": {line(result.text)}" if result.text else ""
    cut_off = ", cut off" if result.cut_off else ""
    used = f"{result.steps} steps, {result.tokens:,} tokens{_cost(result.cost)}{cut_off}"
    return f"{result.state}{why}{text}  ({used})"


def _cost(cost: Decimal | None) -> str:
    return "" if cost is None else f", cost {plain(cost)}"


def _run(work: Callable[[AgentRuns], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Fleet.connect(producer_settings()) as fleet:
            return await work(AgentRuns(fleet))

    return asyncio.run(connected())


def _print_json(value: Any) -> None:
    out(orjson.dumps(value).decode() + "\n")
