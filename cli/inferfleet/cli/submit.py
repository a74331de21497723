"""``inferfleet submit``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic_core import from_json

from inferfleet.cli.going_on import goes_on, submitting
from inferfleet.cli.options import (
    JsonFlag,
    PoolOption,
    PriorityOption,
    not_empty,
    parse_metadata,
    parse_moment,
    producer_settings,
)
from inferfleet.cli.printing import Printed, print_answer, print_json, print_stream
from inferfleet.cli.reading import read_text
from inferfleet.cli.terminal import out
from inferfleet.producer.fleet import Fleet
from inferfleet.producer.job_making import JobOptions, make_job, read_priority
from inferfleet.schemas.endpoints import ENDPOINTS, Endpoint
from inferfleet.schemas.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_POOL, OnBusy, OnLate


def command(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Prompt; or pass a whole request with --body.")
    ] = None,
    *,
    body: Annotated[
        Path | None, typer.Option(help="File with an OpenAI request body; `-` reads stdin.", dir_okay=False)
    ] = None,
    endpoint: Annotated[Endpoint, typer.Option(help="Endpoint of the request body.")] = Endpoint.CHAT,
    pool: PoolOption = DEFAULT_POOL,
    priority: PriorityOption = "normal",
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens to generate for a prompt.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature for a prompt.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System message before a prompt.", callback=not_empty)
    ] = None,
    session: Annotated[
        str | None, typer.Option(help="Session to which this job adds a turn.", callback=not_empty)
    ] = None,
    on_busy: Annotated[
        OnBusy, typer.Option(help="What to do while the session has an unfinished turn.")
    ] = OnBusy.ENQUEUE,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time limit of each attempt.")
    ] = None,
    max_attempts: Annotated[int, typer.Option(help="How often the job may be tried.")] = DEFAULT_MAX_ATTEMPTS,
    not_before: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Earliest start: 90s, 10m, 2h or 3d from now, or an ISO 8601 time with its zone.",
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JOB",
            help="Start when this job has succeeded; repeatable. {{jobs.0.text}} in the prompt stands for "
            "the text of the first.",
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Latest start: 90s, 10m, 2h or 3d from now, or an ISO 8601 time with its zone.",
        ),
    ] = None,
    on_late: Annotated[
        OnLate, typer.Option(help="What to do with a job that would expire before it starts.")
    ] = OnLate.ACCEPT,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Idempotency key: the same key and body give the same job.", callback=not_empty),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Metadata to store with the job; repeatable."),
    ] = None,
    retrieve: Annotated[
        str | None,
        typer.Option(metavar="INDEX", help="Put the nearest passages of an index into the prompt."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they arrive.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job and print its id; with --wait, print its answer; with --stream, its tokens."""
    options: JobOptions = {
        "endpoint": endpoint,
        "pool": pool,
        "priority": read_priority(priority),
        "session_id": session,
        "on_busy": on_busy,
        "max_attempts": max_attempts,
        "not_before": None if not_before is None else parse_moment(not_before, option="--not-before"),
        "after": after or None,
        "expires_at": None if expires is None else parse_moment(expires),
        "on_late": on_late,
        "stream": stream,
        "timeout_s": timeout,
        "idempotency_key": idempotency_key,
        "metadata": parse_metadata(metadata or []),
    }
    if retrieve is not None:
        options["retrieve"] = {"index": retrieve}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if system is not None:
        options["system"] = system
    asyncio.run(_submit(_work(prompt, body, endpoint), options, wait=wait, as_json=as_json))


async def _submit(work: str | dict[str, Any], options: JobOptions, *, wait: bool, as_json: bool) -> None:
    settings = producer_settings()
    # Made here, so that its id is known even if the submission fails.
    job = make_job(work, options, max_body_bytes=settings.max_body_bytes)
    async with Fleet.connect(settings) as fleet:
        with submitting(job.id):
            job = await fleet.submit(job)
        if options.get("stream"):
            printed = Printed()
            with goes_on(job.id, lambda: printed.rest):
                await print_stream(fleet, job.id, as_json=as_json, printed=printed)
        elif wait:
            with goes_on(job.id, "get --wait"):
                result = await fleet.wait(job)
            if as_json:
                print_json(result)
                result.raise_for_state()
            else:
                print_answer(result)
        elif as_json:
            print_json(job)
        else:
            out(f"{job.id}\n")


def _work(prompt: str | None, body: Path | None, endpoint: Endpoint) -> str | dict[str, Any]:
    match prompt, body:
        case None, Path():
            return _read(body)
        case str(), None if ENDPOINTS[endpoint].ask is None:
            raise typer.BadParameter(
                f"{endpoint} needs more than a prompt: give the whole request with --body"
            )
        case str(), None:
            return prompt
        case _:
            raise typer.BadParameter("give either a prompt or --body FILE")


def _read(file: Path) -> dict[str, Any]:
    try:
        # Not orjson, which turns integers of more than 64 bits into floats.
        body: object = from_json(read_text(file), allow_inf_nan=False)
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{file} holds a {type(body).__name__}; a request body is a JSON object")
    return cast("dict[str, Any]", body)
